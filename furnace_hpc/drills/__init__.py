"""Disturb the runs of a tiny grid and measure what each disturbance costs, for `furnace drill`.

It imports `launch` and the packages below. Only the command imports it.
"""
