"""Read the files of runs: results, costs, loss curves, and the cache of a grid.

It imports only `config`, `host` and `runs`. The rest of `tables` imports it.
"""
