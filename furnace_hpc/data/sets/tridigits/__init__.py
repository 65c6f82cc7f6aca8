"""Make the default data set: images, speech and text clues of digits.

`pack.py` writes it: `plan.py` draws the samples, and `render.py` computes pixels and coefficients.
"""
