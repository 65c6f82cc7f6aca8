"""Time limits, canaries and forecasts of a plan, from measured runs of the same kind."""
