"""Run Slurm's commands and parse their output: job states, accounting, errors, ids and node lists.

It imports `runs`, `config` and `host`. `monitor` and the packages above it import it. It decides
nothing about runs.
"""
