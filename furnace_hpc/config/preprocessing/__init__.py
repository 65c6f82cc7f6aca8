"""Preprocessing that a Hugging Face encoder needs, and whether a pack has it.

`files.py` reads the JSON files of a folder or of the hub's cache, without torch or transformers.
`text.py`, `image.py` and `audio.py` describe the needs, and `fit.py` compares a pack with them.
"""
