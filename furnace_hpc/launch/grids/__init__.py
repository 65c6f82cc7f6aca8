"""Plan, submit and cancel a whole grid, for the commands and the Python API."""
