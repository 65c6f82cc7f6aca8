"""Real ranks over gloo, one world size after another, forked from a process that has imported DeepSpeed already.

Most of what a short-lived rank costs is imports: six to ten seconds each, where two cores are shared.
"""

import importlib
import json
import multiprocessing
import os
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

START_S, PER_CASE_S = 60, 10
HEAVY = ["deepspeed", "furnace_hpc.engine.elastic", "furnace_hpc.engine.setup", "furnace_hpc.model.network"]


def run_phases(
    folder: Path, module: str, phases: list[tuple[int, list[dict[str, Any]]]], per_case_s: float = PER_CASE_S
) -> list[Any]:
    """Do cases at one world size after another; rank 0's answers in their order.

    A case is done by the module's function of the name case["do"], called as f(processes, folder, case). No rank
    outlives the call, and one that fails ends the others.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    answers: list[Any] = []
    for number, (world_size, cases) in enumerate(phases):
        place = folder / f"phase-{number}"
        place.mkdir(parents=True)
        arguments = (str(place), world_size, str(folder), module, cases)
        ranks = [context.Process(target=_rank, args=(rank, *arguments)) for rank in range(world_size)]
        try:
            for rank in ranks:
                rank.start()
            _wait(ranks, START_S + per_case_s * len(cases))
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()
        logs = "\n".join(log.read_text()[-3000:] for log in sorted(place.glob("*.log")))
        assert [rank.exitcode for rank in ranks] == [0] * world_size, f"phase {number} failed:\n{logs}"
        answers += json.loads((place / "answers.json").read_text())
    return answers


def _wait(ranks: list[Any], limit_s: float) -> None:
    """Until all have ended well, one has not, or the time is over."""
    deadline_s = time.monotonic() + limit_s
    running = list(ranks)
    while running and time.monotonic() < deadline_s:
        wait([rank.sentinel for rank in running], timeout=1)
        if any(rank.exitcode for rank in ranks):  # the others would wait for it
            return
        running = [rank for rank in running if rank.is_alive()]


def _rank(rank: int, place: str, world_size: int, folder: str, module: str, cases: list[dict[str, Any]]) -> None:
    log = os.open(Path(place) / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    from furnace_hpc.engine.processes import RankInfo, destroy_process_group, init_process_group

    torch.set_num_threads(1)
    processes = init_process_group(RankInfo(rank, rank, world_size, Path(place) / "rendezvous"))
    work = importlib.import_module(module)
    answers = [getattr(work, case["do"])(processes, Path(folder), case) for case in cases]
    processes.barrier()
    destroy_process_group()
    if rank == 0:
        (Path(place) / "answers.json").write_text(json.dumps(answers))
