"""Networks, fusions, encoders, losses and scores of the user's own code.

`contracts.py` says what each must do. Only `model`, `engine`, `inference` and `checks` import it.
"""
