"""Disturb the runs of a tiny grid and read what each disturbance cost, for `furnace drill`.

It imports `launch` and the packages below. Only the command imports it.
"""
