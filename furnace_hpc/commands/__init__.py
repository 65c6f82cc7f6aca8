"""Commands of everyday use, one module each. `furnace NAME` runs `main` of a module's name."""
