"""Several runs on one node: the program of a batch script with `runs_per_node`."""
