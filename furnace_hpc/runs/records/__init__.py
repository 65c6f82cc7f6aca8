"""Read and write the files of a run folder, one module for each kind.

The rest of `runs` and the packages above it import it.
"""
