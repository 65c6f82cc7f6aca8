"""Import all that a rank on a CPU imports, for a process that ranks are forked from.

Importing starts no thread and computes nothing. Random states, threads and process groups belong to
each rank, which sets them itself.
"""

import gc
import importlib
import os

# What a rank sets before it imports DeepSpeed, see ranks/distributed.py.
VARIABLES = {"TORCHDYNAMO_DISABLE": "1", "DS_ACCELERATOR": "cpu"}
# DeepSpeed and torch import some of these only when a run is set up, trained or saved.
MODULES = (
    "deepspeed",
    "furnace_hpc.engine.loop",
    "furnace_hpc.engine.checkpoint.reshard",
)


def preload() -> None:
    """Import everything. The process must not see a GPU: one that uses CUDA cannot be forked."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    for module in MODULES:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # ranks share the memory of these objects
