"""Prepare the standard streams and show progress bars.

It imports no other package of the project. Commands and `data` import it.
"""
