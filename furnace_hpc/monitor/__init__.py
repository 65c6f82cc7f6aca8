"""Report how runs are doing: cached job list, job and status of each run, status lines and logs.

It imports `slurm` and the packages below. `launch`, `api` and commands import it.
"""
