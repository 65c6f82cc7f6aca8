"""Compute the outputs of frozen encoders once per pack (`cache_features`).

`data/features/` has the files.
"""
