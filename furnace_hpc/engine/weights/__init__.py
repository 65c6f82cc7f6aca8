"""The weights of a run: their moving average, and their first values."""
