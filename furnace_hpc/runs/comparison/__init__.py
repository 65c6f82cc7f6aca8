"""Compare two runs: config, code, data, environment and metrics."""
