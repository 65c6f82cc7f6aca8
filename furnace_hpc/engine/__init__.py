"""Train a run on all its ranks: the training loop, DeepSpeed, evaluation and `checkpoint/`.

It contains nothing about Slurm. It imports `model`, `data`, `runs`, `config` and `host`.
"""
