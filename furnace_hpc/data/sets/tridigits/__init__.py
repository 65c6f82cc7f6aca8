"""data/sets/tridigits."""
