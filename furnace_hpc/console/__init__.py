"""Standard streams, progress bars, shared options and shell completion of the commands.

It imports only `host` and `config`. Commands and `data` import it.
"""
