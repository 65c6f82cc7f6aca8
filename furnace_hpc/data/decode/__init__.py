"""data/decode."""
