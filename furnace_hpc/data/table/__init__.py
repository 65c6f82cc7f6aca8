"""Pack a user's own table of texts, image files, sounds and labels: `furnace pack table`.

`command.py` is the command. `sources/` opens files and folders, `staging.py`
writes their rows to one file, and `plan.py` makes a `PackPlan` of it.
"""
