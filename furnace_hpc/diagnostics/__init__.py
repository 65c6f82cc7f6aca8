"""What `furnace doctor` looks at: this machine, its disks, its GPUs, Slurm and its nodes."""
