"""Tell how runs are doing: a cached job list, the status of each run and grid, and how `furnace status` shows it.

It imports `slurm` and the packages below.
"""
