"""Expand grid files into rows and runs."""
