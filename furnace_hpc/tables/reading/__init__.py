"""Read the files of runs: results, costs, loss curves, predictions, and the cache of a grid.

`curves.py` and `samples.py` read for a table that is made already. The types of a table import the
other modules.
"""
