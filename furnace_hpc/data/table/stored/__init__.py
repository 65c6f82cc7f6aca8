"""How texts, images and sounds of a table are stored.

`knobs.py` has all settings, and `options.py` makes them from the options of the command.
"""
