"""Read and write what happened: run folders, attempts, states, code snapshots, journals.

`records/` has one module for each kind of file in a run folder. It may import `config` and `host`.
Packages above it import it: `slurm`, `engine`, `tables` and others.
"""
