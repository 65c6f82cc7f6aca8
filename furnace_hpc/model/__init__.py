"""The network and its losses. Knows nothing of distribution."""
