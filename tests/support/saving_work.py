"""Work of the ranks for saves in the background, for forked_ranks.run_phases."""

import errno
import threading
from pathlib import Path
from typing import Any

import torch
from elastic_work import Case, engine_of, saver_of, state_of, steps_of

from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records import checkpoint_files
from furnace_hpc.runs.records.checkpoint_files import steps_of as saved_steps


def train_on(processes: Any, folder: Path, case: Case) -> dict[str, Any]:
    """Two saves, each delayed while training continues. Then load what was saved."""
    from furnace_hpc.engine.checkpoint import loader
    from furnace_hpc.engine.checkpoint import saver as saver_module

    run, engine = RunFolder(folder / case["source"]), engine_of(case, processes, seed=0, lr=1e-2)
    saver, known = saver_of(engine, run, processes, checkpoint_every=2), {}
    write, busy, due = saver_module.write_files, [], []
    for step in (2, 4):
        steps_of(engine, case, processes, step - 2, 2)
        gate = threading.Event()
        saver_module.write_files = lambda *given, gate=gate: gate.wait(30) and write(*given)
        due.append(saver.is_due(step, 0))
        saver.begin({"step": step})
        due.append(saver.is_due(step + 1, saver.busy))
        known[step] = state_of(engine)
        steps_of(engine, case, processes, step, 1)
        busy.append(saver.busy)
        gate.set()
        saver.wait(step + 1)
        busy.append(saver.busy)
    saver_module.write_files = write
    equal = {}
    for step, wanted in known.items():
        loader.load(engine, run, step, 0, processes)
        equal[step] = _equal(state_of(engine), wanted)
    engine.destroy()
    return {
        "busy": busy,
        "due": due,
        "equal": equal,
        "saved": saver.saved,
        "steps": saved_steps(run),
    }


def bad_gradient(processes: Any, folder: Path, case: Case) -> list[str]:
    """Answers for a step with a good gradient, and for one that is not finite on one rank."""
    from furnace_hpc.engine.loop import check_gradient, check_parameters

    engine, said = engine_of(case, processes, seed=0, lr=1e-2), []
    for bad in (False, True):
        if bad and processes.rank == processes.world_size - 1:
            next(engine.module.parameters()).register_hook(lambda gradient: gradient * float("nan"))
        skipped = engine.skipped_steps
        steps_of(engine, case, processes, int(bad), 1)
        try:
            check_gradient(engine, skipped)
            check_parameters(engine)
            said.append("")
        except FloatingPointError as error:
            said.append(str(error))
    engine.destroy()
    return said


def not_finite(processes: Any, folder: Path, case: Case) -> list[int]:
    """The loss is not finite while a checkpoint is held back."""
    from furnace_hpc.engine.checkpoint import saver as saver_module

    run, engine = RunFolder(folder / case["source"]), engine_of(case, processes, seed=0, lr=1e-2)
    steps_of(engine, case, processes, 0, 1)
    write, gate = saver_module.write_files, threading.Event()
    saver_module.write_files = lambda *given: gate.wait(30) and write(*given)
    try:
        with saver_of(engine, run, processes) as saver:
            saver.begin({"step": 1})
            threading.Timer(0.2, gate.set).start()
            raise FloatingPointError("the loss is nan")
    except FloatingPointError:
        pass
    saver_module.write_files = write
    engine.destroy()
    processes.barrier()
    return saved_steps(run)


def fail(processes: Any, folder: Path, case: Case) -> dict[str, Any]:
    """The last rank's disk is full for some tries. The checkpoint may be given up or not."""
    from furnace_hpc.engine.checkpoint import saver as saver_module

    run, engine = RunFolder(folder / case["source"]), engine_of(case, processes, seed=0, lr=1e-2)
    saver = saver_of(engine, run, processes, checkpoint_every=2)
    steps_of(engine, case, processes, 0, 1)
    assert saver.save({"step": 1})
    write, left = saver_module.write_files, [case["failures"]]

    def full(files: dict[str, Any], aside: Path) -> Any:
        if processes.rank == processes.world_size - 1 and left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(files, aside)

    saver_module.write_files = full
    raised, due = "", []
    try:
        saver.begin({"step": 2}, is_best=case["is_best"])
        if case.get("stopped"):
            saver.save({"step": 3})
        elif case.get("bettered"):
            saver.begin({"step": 3}, is_best=True)
            saver.wait(3)
        else:
            saver.wait(3)
        due = [step for step in range(3, 9) if saver.is_due(step, 0)]
    except (OSError, RuntimeError) as error:
        raised = f"{type(error).__name__}: {error}"
    finally:
        saver_module.write_files = write
        engine.destroy()
    processes.barrier()
    leftovers = [path.name for path in run.checkpoints.glob("step-*.tmp-*")]
    return {"raised": raised, "due": due[:1], "steps": saved_steps(run), "leftovers": leftovers}


def replaced(processes: Any, folder: Path, case: Case) -> list[str]:
    """A newer attempt begins before a save, and while one is written."""
    from furnace_hpc.engine.checkpoint import saver as saver_module

    run, engine = RunFolder(folder / case["source"]), engine_of(case, processes, seed=0, lr=1e-2)
    saver, said = saver_of(engine, run, processes), []
    steps_of(engine, case, processes, 0, 1)
    complete = checkpoint_files.complete
    checkpoint_files.complete = lambda *given: said.append("renamed")
    write, gate = saver_module.write_files, threading.Event()
    saver_module.write_files = lambda *given: gate.wait(30) and write(*given)
    saver.begin({"step": 1})
    if processes.is_rank_zero:
        run.attempts.mkdir(parents=True)
        (run.attempts / "1.json").write_text("{}")
    processes.barrier()
    gate.set()
    for work in (lambda: saver.wait(1), lambda: saver.begin({"step": 2})):
        try:
            work()
        except RuntimeError as error:
            said.append(str(error))
    checkpoint_files.complete, saver_module.write_files = complete, write
    engine.destroy()
    return said


def flipped(processes: Any, folder: Path, case: Case) -> dict[str, Any]:
    """The disk flips a bit of the last rank's part of step 3 before older steps are deleted."""
    from furnace_hpc.engine.checkpoint import saver as saver_module

    run, engine = RunFolder(folder / case["source"]), engine_of(case, processes, seed=0, lr=1e-2)
    saver, write = (
        saver_of(engine, run, processes, checkpoint_every=1, keep_checkpoints=1),
        saver_module.write_files,
    )

    def flips(files: dict[str, Any], aside: Path) -> Any:
        described = write(files, aside)
        if processes.rank == processes.world_size - 1:
            path = aside / f"random-{processes.rank}.pt"
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        return described

    found = []
    for step in (1, 2, 3, 4):
        steps_of(engine, case, processes, step - 1, 1)
        saver_module.write_files = flips if step == 3 else write
        saver.begin({"step": step})
        saver.wait(step)
        processes.barrier()
        aside = [path.name for path in run.checkpoints.glob("aside-*")]
        found.append([saver.saved, saved_steps(run), checkpoint_files.newest_step(run), aside])
        processes.barrier()
    saver_module.write_files = write
    engine.destroy()
    return {"found": found}


def outlived(processes: Any, folder: Path, case: Case) -> dict[str, Any]:
    """A newer attempt begins when step 2 has its name, and step 1 is still to be deleted."""
    run, engine = RunFolder(folder / case["source"]), engine_of(case, processes, seed=0, lr=1e-2)
    saver, said = saver_of(engine, run, processes, checkpoint_every=1, keep_checkpoints=1), ""
    read_back, gate = checkpoint_files.read_back, threading.Event()
    for step in (1, 2):
        steps_of(engine, case, processes, step - 1, 1)
        if step == 2:
            checkpoint_files.read_back = lambda *given: gate.wait(30) and read_back(*given)
        saver.begin({"step": step})
        saver.wait(step, lambda step=step: step == 2 and saver.saved == 2)
    if processes.is_rank_zero:
        run.attempts.mkdir(parents=True)
        (run.attempts / "1.json").write_text("{}")
    processes.barrier()
    gate.set()
    try:
        saver.wait(2)
    except RuntimeError as error:
        said = str(error)
    checkpoint_files.read_back = read_back
    engine.destroy()
    processes.barrier()
    return {"said": said, "steps": saved_steps(run)}


def told_to_stop(processes: Any, folder: Path, case: Case) -> dict[str, Any]:
    """A stop at step 3 while step 2 is read back or step 1 is deleted.

    That continues when step 3 is half written.
    """
    from furnace_hpc.engine.checkpoint import saver as saver_module

    run, engine = RunFolder(folder / case["source"]), engine_of(case, processes, seed=0, lr=1e-2)
    saver = saver_of(engine, run, processes, checkpoint_every=1, keep_checkpoints=1)
    held, write = getattr(checkpoint_files, case["held"]), saver_module.write_files
    under_way, gate, over = threading.Event(), threading.Event(), threading.Event()

    def holds(*given: Any) -> None:
        under_way.set()
        assert gate.wait(30)
        held(*given)
        over.set()

    def writes(files: dict[str, Any], aside: Path) -> Any:
        described = write(files, aside)
        gate.set()
        if under_way.is_set():
            assert over.wait(30)
        return described

    saver.begin({"step": 1})
    saver.wait(1)
    steps_of(engine, case, processes, 0, 1)
    setattr(checkpoint_files, case["held"], holds)
    saver.begin({"step": 2})
    saver.wait(2, lambda: processes.broadcast(under_way.is_set()))
    steps_of(engine, case, processes, 1, 1)
    saver_module.write_files = writes
    saved = saver.save({"step": 3})
    setattr(checkpoint_files, case["held"], held)
    saver_module.write_files = write
    engine.destroy()
    processes.barrier()
    return {"saved": saved, "steps": saved_steps(run), "newest": checkpoint_files.newest_step(run)}


def _equal(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    kinds = ("fp32", "exp_avg", "exp_avg_sq", "buffers")
    same = [
        torch.equal(found[kind][name], wanted[kind][name])
        for kind in kinds
        for name in wanted[kind]
    ]
    return all(same) and found["groups"] == wanted["groups"]
