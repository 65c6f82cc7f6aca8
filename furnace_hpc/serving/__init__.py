"""`furnace serve`: a page and a JSON endpoint that predict with an exported model.

It is meant for one user on one machine. It imports Starlette and uvicorn, which are an extra. The
model computes in `inference`.
"""
