"""Read the public data sets, one module for each. Each makes a `PackPlan`.

They import `decode/` and `packing/`. The command `pack` imports them.
"""
