"""config/parsing."""
