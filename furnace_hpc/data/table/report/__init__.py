"""Describe a table before it is packed: counts on the terminal, and a page with samples."""
