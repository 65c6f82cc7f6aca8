"""The trials of a tuned grid, in the table: choices, costs, text, and lines of CSV files."""
