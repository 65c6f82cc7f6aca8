"""tables/output."""
