"""Make the default data set: digits, speech and text clues."""
