"""Turn packed columns into batches: order, prefetching, staging."""
