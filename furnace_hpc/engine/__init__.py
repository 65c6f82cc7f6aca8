"""Train a run on all its ranks: the training loop, DeepSpeed, evaluation and `checkpoint/`.

It contains nothing about Slurm. It imports `model`, `data`, `runs`, `config` and `host`.
`inference`, the command `train` and `launch/rank_main.py` import it.
"""
