"""Read and write what happened: run folders, attempts, states, code snapshots, and the journal of submissions.

`records/` has one module for each kind of file in a run folder. It imports `config` and `host`.
"""
