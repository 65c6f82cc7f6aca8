"""Check sound files against their headers before they are decoded, one module for each format."""
