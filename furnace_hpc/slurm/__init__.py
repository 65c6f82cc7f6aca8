"""Talk to Slurm: run its commands, parse their output, and give job states, accounting and errors a type.

It imports `runs`, `config` and `host`, and does not decide anything about runs.
"""
