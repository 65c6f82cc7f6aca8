"""Grids in Python, for scripts and notebooks: `furnace_hpc.load_grid` and `furnace_hpc.results`.

It joins planning, submission, states of runs and tables. Commands import parts of it.
"""
