"""Encoders: each turns one modality into a sequence of tokens and a mask of valid tokens.

`choice.py` chooses one. Only `model/network.py`, `engine` and `inference` import them.
"""
