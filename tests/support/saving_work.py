"""Functions of the ranks in test_saving.py, called by forked_ranks.run_phases."""

import errno
import threading
from pathlib import Path
from typing import Any

import torch
from elastic_work import Case, context_of, engine_of, saver_of, state_of, steps_of

from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records import checkpoint_files
from furnace_hpc.runs.records.checkpoint_files import steps_of as saved_steps


def train_on(processes: Any, folder: Path, case: Case) -> dict[str, Any]:
    """Train during two delayed saves, then load and compare the checkpoints."""
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
        loader.load(context_of(engine, run, processes), step)
        equal[step] = _equal(state_of(engine), wanted)
    engine.destroy()
    return {
        "busy": busy,
        "due": due,
        "equal": equal,
        "saved": saver.saved,
        "steps": saved_steps(run),
    }


def overlapped(processes: Any, folder: Path, case: Case) -> dict[str, Any]:
    """A copy to host memory that is held until the next update of the weights, or until a wait."""
    from furnace_hpc.engine.checkpoint import host_copy, loader
    from furnace_hpc.engine.checkpoint.collect import stable_storages
    from furnace_hpc.engine.deepspeed_engine import inner_optimizer

    run, engine = RunFolder(folder / case["source"]), engine_of(case, processes, seed=0, lr=1e-2)
    copy, gate, copied, seen = host_copy.copy_storage, threading.Event(), list[int](), list[int]()

    def held(source: Any, target: Any) -> None:
        assert gate.wait(30)
        copy(source, target)
        copied.append(source.nbytes())

    def release(*_: Any) -> None:
        seen.append(len(copied))
        threading.Timer(0.2, gate.set).start()

    steps_of(engine, case, processes, 0, 2)
    inner, hooks = inner_optimizer(engine), list[Any]()
    if case["then"] == "step":
        hooks.append(inner.register_step_pre_hook(release))
    saver = saver_of(engine, run, processes, checkpoint_every=2)
    hooks.append(inner.register_step_pre_hook(lambda *_: seen.append(len(copied))))
    wanted, random = state_of(engine), torch.get_rng_state()
    host_copy.copy_storage = held
    saver.begin({"step": 2})
    torch.rand(3)
    if case["then"] == "step":
        steps_of(engine, case, processes, 2, 1)
    else:
        release()
    if case["then"] == "save":
        saver.save({"step": 3})
    saver.wait(3)
    host_copy.copy_storage = copy
    for hook in hooks:
        hook.remove()
    steps_of(engine, case, processes, 3, 1)
    loader.load(context_of(engine, run, processes), 2)
    own = {parameter.untyped_storage().data_ptr() for parameter in engine.module.parameters()}
    answer = {
        "equal": _equal(state_of(engine), wanted) and torch.equal(torch.get_rng_state(), random),
        "copied before an update": seen[:2] if seen[1:] else [0, len(copied)],
        "copied": len(copied),
        "share": sum(copied) / max(saver._host_copy.num_bytes - random.nbytes, 1),
        "parameters beside own code": len(own & stable_storages(engine, has_own_code=True)),
        "steps": saved_steps(run),
    }
    engine.destroy()
    return answer


def failed_pass(processes: Any, folder: Path, case: Case) -> dict[str, Any]:
    """The forward pass fails while the state is copied. The copy ends after the training has."""
    from furnace_hpc.engine.checkpoint import host_copy

    run, engine = RunFolder(folder / case["source"]), engine_of(case, processes, seed=0, lr=1e-2)
    copy, gate, raised, task = host_copy.copy_storage, threading.Event(), "", None
    host_copy.copy_storage = lambda *given: gate.wait(30) and copy(*given)
    try:
        with saver_of(engine, run, processes) as saver:
            steps_of(engine, case, processes, 0, 2)
            saver.begin({"step": 2})
            task = saver._pending.task
            raise RuntimeError("out of memory")
    except RuntimeError as error:
        raised = str(error)
    waited = not task.is_alive()
    gate.set()
    task.join()
    host_copy.copy_storage = copy
    engine.destroy()
    processes.barrier()
    return {"raised": raised, "waited": waited, "steps": saved_steps(run)}


def fail_copy(processes: Any, folder: Path, case: Case) -> dict[str, Any]:
    """The last rank has no memory for the copy of the best step. Training continues meanwhile."""
    from furnace_hpc.engine.checkpoint import host_copy

    run, engine = RunFolder(folder / case["source"]), engine_of(case, processes, seed=0, lr=1e-2)
    saver, copy, tries = saver_of(engine, run, processes), host_copy.copy_storage, list[int]()
    steps_of(engine, case, processes, 0, 1)
    assert saver.save({"step": 1})

    def fails(source: Any, target: Any) -> None:
        tries.append(1)
        if processes.rank == processes.world_size - 1:
            raise MemoryError("no memory")
        copy(source, target)

    host_copy.copy_storage = fails
    raised = ""
    try:
        saver.begin({"step": 2}, is_best=True)
        steps_of(engine, case, processes, 1, 1)
        saver.wait(3)
    except RuntimeError as error:
        raised = str(error)
    host_copy.copy_storage = copy
    engine.destroy()
    all_raised, all_tries = processes.gather(raised), processes.gather(len(tries))
    leftovers = [path.name for path in run.checkpoints.glob("step-*.tmp-*")]
    return {
        "raised": all_raised,
        "tries": all_tries[-1],
        "steps": saved_steps(run),
        "leftovers": leftovers,
    }


def bad_gradient(processes: Any, folder: Path, case: Case) -> list[str]:
    """Errors of a good step, and of one whose gradient is not finite on one rank."""
    from furnace_hpc.engine.loop import check_gradient, check_parameters

    engine, errors = engine_of(case, processes, seed=0, lr=1e-2), []
    for bad in (False, True):
        if bad and processes.rank == processes.world_size - 1:
            next(engine.module.parameters()).register_hook(lambda gradient: gradient * float("nan"))
        skipped = engine.skipped_steps
        steps_of(engine, case, processes, int(bad), 1)
        try:
            check_gradient(engine, skipped)
            check_parameters(engine)
            errors.append("")
        except FloatingPointError as error:
            errors.append(str(error))
    engine.destroy()
    return errors


def not_finite(processes: Any, folder: Path, case: Case) -> list[int]:
    """The loss is not finite during a delayed save."""
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
    """The last rank's disk is full for the first tries of a checkpoint."""
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
    """A newer attempt begins before a save and during one."""
    from furnace_hpc.engine.checkpoint import saver as saver_module

    run, engine = RunFolder(folder / case["source"]), engine_of(case, processes, seed=0, lr=1e-2)
    saver, events = saver_of(engine, run, processes), []
    steps_of(engine, case, processes, 0, 1)
    complete = checkpoint_files.complete
    checkpoint_files.complete = lambda *given: events.append("renamed")
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
            events.append(str(error))
    checkpoint_files.complete, saver_module.write_files = complete, write
    engine.destroy()
    return events


def flipped(processes: Any, folder: Path, case: Case) -> dict[str, Any]:
    """The disk flips a bit of the last rank's files of step 3 after the write."""
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
    """A newer attempt begins after step 2 was renamed and before step 1 is deleted."""
    run, engine = RunFolder(folder / case["source"]), engine_of(case, processes, seed=0, lr=1e-2)
    saver, error_text = saver_of(engine, run, processes, checkpoint_every=1, keep_checkpoints=1), ""
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
        error_text = str(error)
    checkpoint_files.read_back = read_back
    engine.destroy()
    processes.barrier()
    return {"error": error_text, "steps": saved_steps(run)}


def stop_during_save(processes: Any, folder: Path, case: Case) -> dict[str, Any]:
    """Stop at step 3 while step 2 is read back or step 1 is deleted.

    The delayed work continues after the write of step 3.
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
    kinds = set(wanted) - {"groups"}
    same = [
        torch.equal(found[kind][name], wanted[kind][name])
        for kind in kinds
        for name in wanted[kind]
    ]
    return all(same) and found["groups"] == wanted["groups"]
