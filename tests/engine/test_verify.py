"""All ranks check a checkpoint together, and each of them makes few calls of the file system."""

import re
import shutil
import sys
import threading
from collections import Counter as Counts
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from make import make_config, make_context

from furnace_hpc.engine.checkpoint import loader, verify
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records import checkpoint_files
from furnace_hpc.runs.trust import check_trusted

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import many_ranks
from many_ranks import Job, StubEngine, ThreadProcesses, ThreadRanks


def on_ranks(job: Job, run: RunFolder, work: Any = loader.load_newest) -> list[Any]:
    """The result of each rank, or the text of its error."""
    shared, results = ThreadRanks(job), [None] * job.world_size

    def be_rank(rank: int) -> None:
        context = make_context(make_config(), StubEngine(), run.path, ThreadProcesses(shared, rank))
        try:
            results[rank] = work(context)
        except Exception as error:
            results[rank] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=be_rank, args=(r,)) for r in range(job.world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def saved_run(job: Job, folder: Path, *steps: int) -> RunFolder:
    run = RunFolder(folder / "runs" / "grid" / "run")
    many_ranks.write_checkpoint(job, run)
    for step in steps:
        shutil.copytree(run.checkpoint(1), run.checkpoint(step))
    return run


def test_shares_are_own_files_and_balanced():
    files = {f"zero/zero_pp_rank_{r}_mp_rank_00_optim_states.pt": [100, ""] for r in range(6)}
    files |= {f"zero/bf16_zero_pp_rank_{r}_mp_rank_00_optim_states.pt": [1, ""] for r in range(6)}
    files |= {"random-2.pt": [1, ""], "zero/mp_rank_00_model_states.pt": [70, ""], "x": [60, ""]}
    shares = verify.shares(files, 4)
    assert sorted(chain(*shares)) == sorted(files)
    for rank, names in enumerate(shares):
        own = [name for name in files if verify.rank_of(name) == rank]
        assert set(own) <= set(names)
    loads = [sum(files[name][0] for name in names) for names in shares]
    # ranks 4 and 5 are gone: their files and the shared ones go to the ranks with the fewest bytes
    assert max(loads) - min(loads) <= 100


def test_each_file_is_hashed_once_by_its_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = Job(2, 3)
    run = saved_run(job, tmp_path)
    hashed: list[tuple[str, str]] = []
    monkeypatch.setattr(loader, "set_random_state", lambda *_: None)
    first_damaged = checkpoint_files.first_damaged

    def noted(path: Path, files: Any, progress: Any = lambda _: None) -> Any:
        hashed.extend((threading.current_thread().name, name) for name in files)
        return first_damaged(path, files, progress)

    monkeypatch.setattr(checkpoint_files, "first_damaged", noted)
    assert on_ranks(job, run) == [{"step": 1}] * 6
    files = checkpoint_files.read_manifest(run.checkpoint(1))["files"]
    assert Counts(name for _, name in hashed) == Counts(list(files))
    assert {thread for thread, _ in hashed} == {"hashing"}


@pytest.mark.parametrize("name", ["random-4.pt", "zero/mp_rank_00_model_states.pt"])
def test_damage_in_any_share_walks_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
):
    job = Job(2, 3)
    run = saved_run(job, tmp_path, 5)
    monkeypatch.setattr(loader, "set_random_state", lambda *_: None)
    path = run.checkpoint(5) / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert on_ranks(job, run) == [{"step": 1}] * 6
    assert f"checkpoint {run.checkpoint(5)} is damaged and set aside" in capsys.readouterr().out
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["aside-step-5.1", "step-1"]
    assert on_ranks(job, run, lambda context: verify.is_complete(context, 1)) == [True] * 6
    shutil.rmtree(run.checkpoint(1))
    assert on_ranks(job, run, lambda context: verify.is_complete(context, 1)) == [False] * 6
    [error] = set(on_ranks(job, run))
    assert error.startswith("RuntimeError: 1 checkpoints were saved")


def test_a_node_that_sees_other_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A good checkpoint is not set aside because one node does not mount the file system."""
    job = Job(2, 2)
    run = saved_run(job, tmp_path)
    describe = checkpoint_files.describe
    known: set[str] = set()

    def blind_once(path: Path, *more: Any) -> Any:
        if path.name == "random-3.pt" and path.name not in known:
            known.add(path.name)  # rank 3 looks first
            raise FileNotFoundError(path)
        return describe(path, *more)

    monkeypatch.setattr(checkpoint_files, "describe", blind_once)
    [error] = set(on_ranks(job, run))
    assert error == (
        f"RuntimeError: rank 3 does not see {run.checkpoint(1)}/random-3.pt as rank 0 does. Put "
        "the runs on a file system that all nodes mount."
    )
    assert run.checkpoint(1).exists()


def test_unreadable_files_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = Job(1, 3)
    run = saved_run(job, tmp_path)

    def refused(path: Path, *more: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint_files, "describe", refused)
    [error] = set(on_ranks(job, run))
    assert error.startswith("RuntimeError: PermissionError: [Errno 13]")
    assert run.checkpoint(1).exists()


def test_calls_per_rank_do_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before, every rank looked at every file: 8 ranks made 494 calls, 32 made 5,030."""
    monkeypatch.setattr(loader, "set_random_state", lambda *_: None)
    rows = [many_ranks.loading(Job(n, 4), tmp_path / str(n)) for n in (2, 8)]
    assert [row["ranks_loaded"] for row in rows] == [8, 32]
    assert [row["files_hashed"] for row in rows] == [17, 65]
    assert max(row["calls_per_rank"] for row in rows) <= 18


def test_ownership_is_checked_once_per_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = Job(3, 4)
    run = saved_run(job, tmp_path)
    checks: list[str] = []

    def whole(path: Path, root: Path) -> None:
        checks.append("content")
        check_trusted(path, root)

    monkeypatch.setattr(loader, "check_trusted", whole)
    monkeypatch.setattr(loader, "check_place", lambda path, root: checks.append("place"))
    monkeypatch.setattr(loader, "set_random_state", lambda *_: None)
    assert on_ranks(job, run) == [{"step": 1}] * 12
    assert Counts(checks) == {"content": 1, "place": 2}
    (run.checkpoint(1) / "random-7.pt").chmod(0o666)
    answers = set(on_ranks(job, run))
    assert len(answers) == 1, "all ranks raise the same error"
    assert re.match(r"ConfigError: .*/random-7.pt .* chmod go-w ", answers.pop())
