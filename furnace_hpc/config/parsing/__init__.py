"""Read files that users write, find problems in them, and make text safe to show.

It imports `host`. Every package except `host` may import it.
"""
