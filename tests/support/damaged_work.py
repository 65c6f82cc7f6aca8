"""Work of the ranks with damaged checkpoints, ours and DeepSpeed's, for forked_ranks.run_phases.

`make` saves at GOOD and at NEWEST. The test damages the newest. `load` returns what was loaded.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from damage import ALL
from elastic_work import Case, engine_of, saver_of, state_of, steps_of

from furnace_hpc.runs.folder import RunFolder

GOOD, NEWEST = 2, 4


def make(processes: Any, folder: Path, case: Case) -> list[int]:
    """Two checkpoints by our saver or by DeepSpeed. Their content is kept beside them."""
    run, engine = RunFolder(folder / case["source"]), engine_of(case, processes, seed=0, lr=1e-2)
    run.path.mkdir(parents=True, exist_ok=True)
    saver = saver_of(engine, run, processes, keep_checkpoints=2)
    for step in (GOOD, NEWEST):
        steps_of(engine, case, processes, step - 2, 2)
        if case.get("theirs"):
            engine.save_checkpoint(
                str(run.path), tag=f"step-{step}", client_state={"furnace": {"step": step}}
            )
        else:
            assert saver.save({"step": step})
        known = state_of(engine)
        if processes.is_rank_zero:
            torch.save(known, folder / f"{case['source']}-{step}.pt")
    engine.destroy()
    return [GOOD, NEWEST]


def load(processes: Any, folder: Path, case: Case) -> dict[str, Any]:
    """Damage a copy of the newest one and load. Return which checkpoint was loaded, if any."""
    from furnace_hpc.engine.checkpoint import loader

    run = RunFolder(folder / f"{case['source']}, {case['damage']}")
    if processes.is_rank_zero:
        shutil.copytree(folder / case["source"], run.path)
        newest = run.path / f"step-{NEWEST}" if case.get("theirs") else run.checkpoint(NEWEST)
        ALL[case["damage"]](newest)
    processes.barrier()
    engine = engine_of(case, processes, seed=1, lr=7e-4)
    if case.get("theirs"):
        path, client_state = engine.load_checkpoint(str(run.path))
        state = None if path is None else client_state["furnace"]
    else:
        state = loader.load_newest(engine, run, 0, processes)
    now = state_of(engine)
    known = {
        step: torch.load(folder / f"{case['source']}-{step}.pt", weights_only=False)
        for step in (GOOD, NEWEST)
    }
    is_now = [step for step, wanted in known.items() if _equal(now, wanted)]
    engine.destroy()
    aside = sorted(path.name for path in run.checkpoints.glob("aside-*"))
    return {"damage": case["damage"], "state": state, "is": is_now, "aside": aside}


def _equal(now: dict[str, Any], wanted: dict[str, Any]) -> bool:
    kinds = ("fp32", "exp_avg", "exp_avg_sq", "buffers")
    return all(
        torch.equal(now[kind][name], value)
        for kind in kinds
        for name, value in wanted[kind].items()
    )
