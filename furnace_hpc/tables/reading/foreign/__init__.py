"""Read files with the runs of other tools: CSV, JSON Lines, Parquet, and event files.

`lines.py` reads lines of any file. `formats.py` recognises the tool by its columns. `runs.py` makes
one run of each line, or of the last step of a history. Memory is bounded by the number of runs.
"""
