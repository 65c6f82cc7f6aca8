"""Run a module-level function on several real ranks that talk over gloo, and give back what each returned.

A function is called as f(processes, *arguments) and returns something JSON can say. A hung collective is ended
in two to three minutes, and no rank outlives the call.
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

START_S, PER_RANK_S = 90, 25  # four ranks that start on two busy cores need a minute before they do anything


def run_on_ranks(function: Callable[..., Any], world_size: int, folder: Path, *arguments: Any) -> list[Any]:
    folder.mkdir(parents=True, exist_ok=True)
    call = json.dumps(
        [function.__module__, function.__name__, [str(a) if isinstance(a, Path) else a for a in arguments]]
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank), str(world_size), call],
            stdout=(folder / f"rank-{rank}.log").open("w"),
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parent,
        )
        for rank in range(world_size)
    ]
    try:
        codes = [rank.wait(START_S + PER_RANK_S * world_size) for rank in ranks]
    except subprocess.TimeoutExpired:
        codes = [None]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    logs = "\n".join((folder / f"rank-{rank}.log").read_text()[-3000:] for rank in range(world_size))
    assert codes == [0] * world_size, f"ranks ended with {codes}:\n{logs}"
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(world_size)]


def _main(folder: Path, rank: int, world_size: int, call: str) -> None:
    from furnace_hpc.engine.processes import RankInfo, destroy_process_group, init_process_group

    module, name, arguments = json.loads(call)
    processes = init_process_group(RankInfo(rank, rank, world_size, folder / "rendezvous"))
    answer = getattr(importlib.import_module(module), name)(processes, *arguments)
    processes.barrier()
    destroy_process_group()
    (folder / f"rank-{rank}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
