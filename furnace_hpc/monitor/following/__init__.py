"""Follow the logs of runs while they are written, over all attempts."""
