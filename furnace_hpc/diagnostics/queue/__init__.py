"""Find where a run of a profile would start soonest, by `sbatch --test-only`."""
