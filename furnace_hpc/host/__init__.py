"""Start and end each attempt of a run on its node: leases, attempt numbers, end reasons, budgets.

It also has the rule about which files others could change (`access.py`). It runs before any package
can be loaded. So it imports only the standard library and is valid Python 3.6. Every other package
may import it.
"""
