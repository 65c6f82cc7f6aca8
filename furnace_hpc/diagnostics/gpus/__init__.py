"""Checks of GPUs: driver, health and the network between two nodes.

They judge facts that child processes or jobs have read, and load no torch.
"""
