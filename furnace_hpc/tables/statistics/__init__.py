"""Compute statistics of a few runs: intervals, tests, bootstrap.

It imports only `config`, `host` and `runs`. The rest of `tables` imports it.
"""
