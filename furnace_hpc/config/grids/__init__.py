"""Define grid files, and expand them to rows and runs."""
