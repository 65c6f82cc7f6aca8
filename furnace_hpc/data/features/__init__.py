"""Stored outputs of frozen encoders: their files, and batches that contain them.

`engine/features/` computes them.
"""
