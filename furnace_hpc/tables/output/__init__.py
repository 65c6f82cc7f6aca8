"""Write tables, the report, figures and captions.

It imports the rest of `tables`. Commands and `api` import it.
"""
