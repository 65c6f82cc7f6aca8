"""Optimizers, groups of parameters, learning rates, and norms of gradients by group."""
