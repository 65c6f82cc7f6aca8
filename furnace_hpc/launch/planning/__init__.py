"""Decide what a submission does with each run, and show it. Nothing is written here.

Only `launch`, `drills`, `diagnostics` and commands import it.
"""
