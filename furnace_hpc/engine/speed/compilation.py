"""Compile the repeated blocks of a network with torch.compile."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.model.attention import AttentionBlock

COMPILERS = ("torch._dynamo", "torch._inductor")
MAX_SHAPES = 1024  # of one block's inputs; torch's own limit is 8, after which nothing is compiled


def compile_blocks(model: nn.Module, device: torch.device) -> None:
    """Compile each attention block and transformer layer at its first call.

    Each shape of the inputs is compiled for itself. So a resumed run has the same kernels as a run
    that was not stopped. A layer for any shape would depend on the shapes seen before.

    Args:
        model: the network, which may still be on the CPU.
        device: the device on which it will run.

    Raises:
        ConfigError: this machine has no compiler for the device.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    _check_compiler(device)
    import torch._dynamo

    os.environ["TORCHDYNAMO_DISABLE"] = "0"  # start-up has set it, because it saves time
    torch._dynamo.config.recompile_limit = MAX_SHAPES
    torch._dynamo.config.accumulated_recompile_limit = MAX_SHAPES
    for module in model.modules():
        if isinstance(module, (AttentionBlock, GradientCheckpointingLayer)):
            module.compile(dynamic=False)


def _check_compiler(device: torch.device) -> None:
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise ConfigError(
                "compile: true needs the package triton, which is not installed. Install it, or "
                "set compile: false."
            )
    elif not shutil.which(os.environ.get("CXX", "g++")):
        raise ConfigError(
            "compile: true needs a C++ compiler on the nodes: no "
            f"{os.environ.get('CXX', 'g++')} in PATH. Install or load one, or set compile: false."
        )


@contextmanager
def explained_compilation(is_compiled: bool) -> Iterator[None]:
    """Raise ConfigError instead of an error of torch's compiler."""
    try:
        yield
    except RuntimeError as error:
        if not is_compiled or not type(error).__module__.startswith(COMPILERS):
            raise
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"compile is true, and torch could not compile the network: {type(error).__name__}: "
            f"{first}. Set compile: false, or see the log for the compiler's output."
        ) from error
