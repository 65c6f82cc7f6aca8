"""Start ranks from a copy of their Python on the node's own disk, made once per node.

It runs in each rank before any package is imported. Standard library only, syntax of Python 3.6.
"""
