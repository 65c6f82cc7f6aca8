"""Decode single files: images, sounds, text.

`sets/`, `packing/`, `model` and `inference` import it.
"""
