"""Save checkpoints in the background, and load them at any world size and ZeRO stage."""
