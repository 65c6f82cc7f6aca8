"""Check this machine, its disks and GPUs, Slurm, and one compute node, for `furnace doctor`.

It imports `launch` and the packages below. Only the command imports it.
"""
