"""The results of a grid from Python: `furnace_hpc.results("ablation")`.

It joins tables and states of runs, and imports packages of the login node. Commands import it.
"""
