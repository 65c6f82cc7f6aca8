"""Read the public data sets, one module for each."""
