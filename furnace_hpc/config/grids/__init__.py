"""Define grid files, and expand them to rows and runs.

It imports the rest of `config`. Every package except `host` may import it.
"""
