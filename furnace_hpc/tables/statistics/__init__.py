"""Statistics of a few runs: intervals, tests, bootstrap."""
