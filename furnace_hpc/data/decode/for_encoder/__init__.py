"""Prepare images and sounds as the processors of transformers do, for `pack --for`.

A class is what a pack's manifest records, so `furnace predict` prepares its input in the same way.
"""
