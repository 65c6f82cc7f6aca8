"""Keep the last collectives of a hung rank: torch's flight recorder.

Names and defaults are those of torch 2.13 (FlightRecorder.hpp, ProcessGroupNCCL.hpp). NCCL's
watchdog in torch writes the same file before it aborts a rank. Ours ends a rank earlier, so it
writes the file itself. To read the files of all ranks:

    torchfrtrace --prefix 1-collectives- RUN/logs
"""

import sys
import threading
from collections.abc import Callable, MutableMapping
from pathlib import Path

EVENTS = 2000  # kept; torch's own default from 2.11 on
DUMP_S = 10.0  # a dump may hang on a GPU that does not answer
BUFFER = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
TEMP_FILE = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")


def set_variables(environment: MutableMapping[str, str], prefix: Path | None) -> None:
    """Set what torch and NCCL read, unless the user has. Call it before the process group exists.

    Args:
        environment: of this process.
        prefix: beginning of the path of a dump, to which torch adds the rank. None: no run folder.
    """
    environment.setdefault("NCCL_DEBUG", "WARN")
    if not any(name in environment for name in BUFFER):
        environment["TORCH_FR_BUFFER_SIZE"] = str(EVENTS)
    environment.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    if prefix is not None and not any(name in environment for name in TEMP_FILE):
        for name in TEMP_FILE:  # older versions of torch read the second one
            environment[name] = str(prefix)


def dump(path: Path) -> bool:
    """Write the last collectives of this process. Return whether there is a file now.

    It never raises an error and returns in time, because the process is about to be killed.
    """
    writer = threading.Thread(target=_write, args=(path,), daemon=True)
    writer.start()
    writer.join(DUMP_S)
    return path.exists()


def _write(path: Path) -> None:
    """Write under a temporary name first, because the process may end at any time."""
    try:
        # Stack traces would take seconds, and those of now are in the log.
        content = _recorder()(includeStackTraces=False)
        temporary = path.with_name(f".{path.name}")
        temporary.write_bytes(content)
        temporary.rename(path)
    except Exception as error:
        print(f"the last collectives were not written: {error}", flush=True)


def _recorder() -> Callable[..., bytes]:
    """The function of torch that returns the pickled trace: of NCCL, or of gloo."""
    c10d = sys.modules["torch"]._C._distributed_c10d  # a rank that hangs imports nothing
    name = "_dump_nccl_trace"
    if not hasattr(c10d, name):  # a build without CUDA
        name = "_dump_fr_trace"
    found: Callable[..., bytes] = getattr(c10d, name)
    return found
