"""How long runs take: measured parts of attempts, forecasts from them, and how these turn out.

`spread.py` has the arithmetic, `attempt_times.py` reads attempts, `cost.py` pools them.
"""
