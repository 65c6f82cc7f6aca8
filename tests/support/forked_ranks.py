"""Real ranks over gloo, forked from a process that has imported DeepSpeed and transformers already.

Imports are most of the cost of a short-lived rank: six to ten seconds each on two shared cores. No
rank outlives a call. A rank that fails ends the others.
"""

import importlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

START_S, PER_CASE_S = 240, 10  # for a machine with much other work
# What DeepSpeed and the network import when first used is named too.
HEAVY = [
    "deepspeed",
    "furnace_hpc.engine.loop",
    "furnace_hpc.engine.checkpoint.reshard",
    "torch._dynamo",
]
HEAVY += ["transformers.models.bert.modeling_bert"]


@contextmanager
def forked(
    world_size: int, target: Callable[..., None], *arguments: Any
) -> Iterator[list[ForkServerProcess]]:
    """Ranks that run target(rank, *arguments). Those that remain at the end are killed."""
    context = multiprocessing.get_context("forkserver")
    # only the first call counts: all tests share one server
    context.set_forkserver_preload(HEAVY)
    ranks = [context.Process(target=target, args=(rank, *arguments)) for rank in range(world_size)]
    try:
        for rank in ranks:
            rank.start()
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()


def wait_for(ranks: list[ForkServerProcess], limit_s: float) -> None:
    """Until all have ended well, one has not, or the time is over."""
    deadline_s = time.monotonic() + limit_s
    while running := [rank for rank in ranks if rank.is_alive()]:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or any(rank.exitcode for rank in ranks):  # the others would wait for it
            return
        wait([rank.sentinel for rank in running], timeout=left_s)


def run_on_ranks(
    function: Callable[..., Any], world_size: int, folder: Path, *arguments: Any
) -> list[Any]:
    """What function(processes, *arguments) returned on each rank, as JSON says it."""
    given = [str(argument) if isinstance(argument, Path) else argument for argument in arguments]
    return _answers(
        folder, world_size, function.__module__, function.__name__, given, START_S + 25 * world_size
    )


def run_phases(
    folder: Path,
    module: str,
    phases: list[tuple[int, list[dict[str, Any]]]],
    per_case_s: float = PER_CASE_S,
) -> list[Any]:
    """Run cases at one world size after another. Return the answers of rank 0 in order.

    The module's function case["do"] runs a case. It is called as f(processes, folder, case).
    """
    answers: list[Any] = []
    for number, (world_size, cases) in enumerate(phases):
        place, limit_s = folder / f"phase-{number}", START_S + per_case_s * len(cases)
        answers += _answers(
            place, world_size, __name__, "do_cases", [str(folder), module, cases], limit_s
        )[0]
    return answers


def do_cases(processes: Any, folder: str, module: str, cases: list[dict[str, Any]]) -> list[Any]:
    work = importlib.import_module(module)
    return [getattr(work, case["do"])(processes, Path(folder), case) for case in cases]


def _answers(
    place: Path, world_size: int, module: str, name: str, given: list[Any], limit_s: float
) -> list[Any]:
    place.mkdir(parents=True, exist_ok=True)
    with forked(world_size, _rank, str(place), world_size, module, name, given) as ranks:
        wait_for(ranks, limit_s)
    codes = [rank.exitcode for rank in ranks]
    logs = "\n".join(log.read_text()[-3000:] for log in sorted(place.glob("rank-*.log")))
    assert codes == [0] * world_size, f"{name} in {place.name}: ranks ended with {codes}:\n{logs}"
    return [json.loads((place / f"rank-{rank}.json").read_text()) for rank in range(world_size)]


def _rank(rank: int, place: str, world_size: int, module: str, name: str, given: list[Any]) -> None:
    log = os.open(Path(place) / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    from furnace_hpc.engine.ranks.distributed import (
        RankInfo,
        destroy_process_group,
        init_process_group,
    )

    torch.set_num_threads(1)
    processes = init_process_group(RankInfo(rank, rank, world_size, Path(place) / "rendezvous"))
    answer = getattr(importlib.import_module(module), name)(processes, *given)
    processes.barrier()
    destroy_process_group()
    (Path(place) / f"rank-{rank}.json").write_text(json.dumps(answer))
