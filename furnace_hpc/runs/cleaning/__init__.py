"""Free disk space of a grid: sizes of its files, what is still needed, and safe deletion."""
