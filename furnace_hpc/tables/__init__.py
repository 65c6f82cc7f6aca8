"""What it means: statistics over finished runs, and their tables and figures."""
