"""Write packs: worker processes, rejected files, statistics, and a writer that can be resumed.

`sets/` describes a pack, and `pack.py` runs it.
"""
