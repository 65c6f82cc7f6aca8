"""runs/records."""
