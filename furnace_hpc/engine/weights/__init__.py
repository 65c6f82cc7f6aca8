"""The weights of a run: their moving average."""
