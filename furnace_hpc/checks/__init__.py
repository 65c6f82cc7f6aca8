"""`furnace check`: whether the rows of a grid keep the contracts of `model/own_code/contracts.py`.

`small_pack.py` cuts a few real samples out of a pack. `modules.py` checks a network in this
process. `trained.py` trains rows with the local queue, and compares runs. `places.py` finds the
user's file and line.
"""
