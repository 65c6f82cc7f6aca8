"""Ranks of the local queue: a controller per run, and a server that forks both from one process.

The server has imported torch and DeepSpeed, so a run starts without these imports.
"""
