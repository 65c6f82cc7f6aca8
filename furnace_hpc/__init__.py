"""Furnace: an ablation table you can trust, whatever the cluster does to your jobs."""

__version__ = "0.1.0"
