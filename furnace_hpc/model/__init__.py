"""The network: encoders, fusion, losses and scores. It contains nothing about distribution.

It imports `data` and `config`. `engine` and `inference` import it.
"""
