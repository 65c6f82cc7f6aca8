"""Make a GPU compute the same bits every time. Explain the error of an operation that cannot."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from furnace_hpc.config.errors import ConfigError

# torch's own error, which begins with the operation's name
_NO_IMPLEMENTATION = re.compile(r"(\S+) does not have a deterministic implementation")


def set_up_determinism(wanted: bool) -> None:
    """On a GPU, make torch use only deterministic algorithms if they are wanted.

    Warnings instead of errors (`warn_only`) would also change results: then the backward pass of
    attention stays non-deterministic. Torch also fills new memory, which no code here reads.
    """
    if not wanted or not torch.cuda.is_available():
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


@contextmanager
def explained_nondeterminism() -> Iterator[None]:
    """Raise ConfigError instead of torch's error about an operation that is not deterministic."""
    try:
        yield
    except RuntimeError as error:
        found = _NO_IMPLEMENTATION.search(str(error))
        if not found:
            raise
        raise ConfigError(
            f"deterministic is true, and {found[1]} has no deterministic implementation on this "
            "device. Set deterministic: false, or change the part of the model that uses it."
        ) from error
