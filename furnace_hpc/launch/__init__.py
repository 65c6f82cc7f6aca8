"""Plan and submit runs: batch scripts, Slurm arrays, the local queue, and the entry point of ranks.

It imports `monitor` and the packages below. Only `slurm_array.py` imports `submitit`.
`drills`, `diagnostics` and commands import it.
"""
