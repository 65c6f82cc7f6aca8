"""data/loading."""
