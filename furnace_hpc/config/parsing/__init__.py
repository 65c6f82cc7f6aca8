"""Read files that users write, find problems in them, and make text safe to show."""
