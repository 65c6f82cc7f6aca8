"""Import all that a rank on a CPU imports, for a process that ranks are forked from.

Importing starts no thread and computes nothing. Random states, threads and process groups belong to
each rank, which sets them itself.
"""

import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# What a rank sets before it imports DeepSpeed, see ranks/distributed.py.
VARIABLES = {"TORCHDYNAMO_DISABLE": "1", "DS_ACCELERATOR": "cpu"}
MODULES = (
    "deepspeed",
    "furnace_hpc.engine.loop",
    "furnace_hpc.engine.checkpoint.reshard",
)
# What they import only when a run is set up, trained or saved. Without them a start takes longer.
LATER = (
    "transformers.models.bert.modeling_bert",
    "torch.utils.serialization.config",
    "torch.profiler._cupti_monitor",
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.muon.original_muon",
)


def preload() -> None:
    """Import everything. The process must not see a GPU: one that uses CUDA cannot be forked."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    with no_collection():
        for module in MODULES:
            importlib.import_module(module)
        for module in LATER:
            with suppress(ImportError):
                importlib.import_module(module)
        _probe_operators()
    gc.collect()
    gc.freeze()  # ranks share the memory of these objects


@contextmanager
def no_collection() -> Iterator[None]:
    """Collect no garbage. Imports leave little, and searching it takes a tenth of their time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _probe_operators() -> None:
    """Let DeepSpeed find out which of its operators this machine can compile. It asks a compiler.

    DeepSpeed keeps the answer, and every start of an engine needs it.
    """
    import deepspeed

    _ = deepspeed.ops.__compatible_ops__
