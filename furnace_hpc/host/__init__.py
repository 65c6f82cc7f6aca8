"""Frame each attempt of a run on its node: leases, attempt numbers, end reasons, budgets, and who may change files.

It runs before any package can be loaded, so it imports the standard library alone and is valid Python 3.6. Every other
package may import it.
"""
