"""Where runs run: profiles, plans, the Slurm array, the local queue. Imports nothing heavy."""
