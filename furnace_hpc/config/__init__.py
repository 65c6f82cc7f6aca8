"""Describe what to run: run configs, cluster profiles, DeepSpeed files, metrics, run identities.

`grids/` expands grids, `parsing/` reads files and reports problems. It imports only `host`.
Every package may import it.
"""
