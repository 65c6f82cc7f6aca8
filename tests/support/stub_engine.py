"""A code snapshot whose engine is a stub: ranks start as always, and import no torch.

The name of a run says what its ranks do:

ok...      end with 0                       exits...   rank 1 (or the only one) exits with 7
dies...    rank 1 kills itself              segv...    rank 1 has a segmentation fault
waits...   run until TERM, then end with 85

Each rank writes what it sees to RUN/rank-N.json first.
"""

import shutil
from pathlib import Path

import furnace_hpc

PRELOAD = """
import os, threading, time
from contextlib import nullcontext as no_collection
def preload():
    with open(os.environ["STUB"] + "/preloads", "a") as file:
        file.write(f"{os.getpid()}\\n")
    how = os.environ.get("STUB_PRELOAD")
    if how == "thread":
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    if how == "exit":
        os._exit(3)
    if how == "sleep":
        time.sleep(600)
"""
LOOP = """
import json, os, signal, sys, time
from pathlib import Path
def train(folder, attempt, info, verdict):
    name = folder.run_id
    command = Path("/proc/self/cmdline").read_bytes().decode().replace("\\0", " ").strip()
    seen = {
        "pid": os.getpid(), "controller": os.getppid(), "command": command,
        "world": info.world_size,
        "environment": dict(os.environ), "attempt": attempt, "code": __file__,
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
    }
    file = folder.path / f"rank-{info.rank}.json"
    file.with_suffix(".new").write_text(json.dumps(seen))
    file.with_suffix(".new").rename(file)
    is_last = info.rank == info.world_size - 1
    if name.startswith("dies") and is_last:
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("segv") and is_last:
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("exits") and is_last:
        os._exit(7)
    if name.startswith("ok"):
        return 0
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    while not stopped:
        time.sleep(0.02)
    (folder.path / f"stopped-{info.rank}").touch()
    return 85
"""
DISTRIBUTED = """
from typing import NamedTuple
class RankInfo(NamedTuple):
    rank: int
    local_rank: int
    world_size: int
    rendezvous: object
"""


def write_snapshot(folder: Path) -> Path:
    """Write the snapshot below `folder`, as runs/GRID/code/HASH. Return its path."""
    code = folder / "runs" / "grid" / "code" / "0123456789ab"
    package = Path(furnace_hpc.__file__).parent
    for part in ("host", "config", "runs", "slurm", "launch", "monitor"):
        shutil.copytree(
            package / part,
            code / "furnace_hpc" / part,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    shutil.copy(package / "__init__.py", code / "furnace_hpc")
    engine = code / "furnace_hpc" / "engine"
    (engine / "ranks").mkdir(parents=True)
    for name, text in (
        ("__init__", ""),
        ("preload", PRELOAD),
        ("loop", LOOP),
        ("ranks/__init__", ""),
        ("ranks/distributed", DISTRIBUTED),
    ):
        (engine / f"{name}.py").write_text(text)
    return code


def write_run(code: Path, name: str) -> Path:
    """Write a run folder in which an attempt has begun."""
    run = code.parent.parent / name
    for part in ("verdicts", "logs", "attempts"):
        (run / part).mkdir(parents=True)
    (run / "spec.json").write_text("{}")
    return run
