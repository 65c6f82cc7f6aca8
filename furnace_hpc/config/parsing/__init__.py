"""Find and read files of settings, and report every problem with its place."""
