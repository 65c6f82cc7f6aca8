"""What `furnace submit` and `furnace cancel` do with a whole grid. The Python API calls it too."""
