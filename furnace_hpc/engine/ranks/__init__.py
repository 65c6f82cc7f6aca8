"""Processes of a run: process group, devices, gather, stop requests and the watchdog.

It imports only `config`, `host`, `runs` and `data`. The rest of `engine` imports it.
"""
