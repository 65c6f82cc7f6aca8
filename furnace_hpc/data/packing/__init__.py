"""data/packing."""
