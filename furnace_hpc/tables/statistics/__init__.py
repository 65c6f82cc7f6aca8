"""Compute statistics of a few runs: intervals, tests, bootstrap.

It imports `config`, `runs` and the types of tables. The rest of `tables` imports it.
"""
