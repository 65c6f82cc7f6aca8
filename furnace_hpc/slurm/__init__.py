"""Run Slurm's commands and parse their output: job states, accounting, errors, ids and node lists.

It imports `runs`, `config` and `host`. It does not decide anything about runs.
"""
