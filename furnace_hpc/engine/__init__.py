"""The training. Knows nothing of Slurm."""
