"""Raw data to memory-mapped columns, and columns to batches."""
