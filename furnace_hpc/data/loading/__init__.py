"""Turn packed columns into batches: sample order, prefetching, and a copy on the node's disk.

`engine` and `inference` import it.
"""
