"""Save checkpoints in the background. Load them with any number of processes and any ZeRO stage.

It imports the rest of `engine`, `runs`, `config` and `host`. The training loop and
`inference` import it.
"""
