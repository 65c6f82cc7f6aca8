"""tables/statistics."""
