"""Watch job steps: the srun of a run, from its batch script's node.

Standard library only, syntax of Python 3.6.
"""
