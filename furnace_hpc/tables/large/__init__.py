"""Speed up tables of thousands of rows: cache results, and choose the rows to draw."""
