"""What to run: typed configuration, grids and the names of shipped files. Imports nothing heavy."""
