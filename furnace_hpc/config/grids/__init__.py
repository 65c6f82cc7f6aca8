"""config/grids."""
