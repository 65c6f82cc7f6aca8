"""Start the ranks of a run in a container: the image, the folders inside, and the command.

It runs on the host, before and beside the container. The batch script, the lease and the decision
stay outside. Standard library only, syntax of Python 3.6.
"""
