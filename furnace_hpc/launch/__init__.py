"""Make it happen: the plan, submissions, the batch script, arrays, the local queue, and the entry point of each rank.

It imports `monitor` and the packages below. `submitit` is imported in `slurm_array.py` and `local_queue.py` only.
"""
