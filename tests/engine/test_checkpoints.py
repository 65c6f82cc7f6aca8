"""Choice of the checkpoint to load, deletion of old ones, and writes of replaced attempts."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from furnace_hpc.engine.checkpoint.loader import TAG, check_is_newest
from furnace_hpc.host import lifecycle
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records import checkpoint_files
from furnace_hpc.runs.records.checkpoint_files import (
    complete,
    describe,
    newest_step,
    note_saved,
    prune,
)


def saved(folder: RunFolder, *steps: int, best: int = 0) -> RunFolder:
    for step in steps:
        final = folder.checkpoint(step)
        temporary = final.with_name(f"{final.name}.tmp-1")
        (temporary / TAG).mkdir(parents=True)
        (temporary / TAG / "shard.pt").write_bytes(bytes([step]) * 1000)
        name = f"{TAG}/shard.pt"
        complete(
            temporary,
            final,
            {"step": step, "world_size": 1, "state": {"best_step": min(step, best)}},
            {name: describe(temporary / name)},
        )
        note_saved(folder, step, 1, 0.5)
    return folder


def flip_a_byte(folder: RunFolder, step: int) -> None:
    path = folder.checkpoint(step) / TAG / "shard.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")


def steps(folder: RunFolder) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.checkpoints.glob("step-*"))


def test_newest_undamaged_is_loaded(tmp_path: Path):
    folder = saved(RunFolder(tmp_path), 10, 20, 30)
    assert newest_step(folder) == 30
    flip_a_byte(folder, 30)
    assert newest_step(folder) == 20
    (folder.checkpoint(20) / "manifest.json").unlink()
    assert newest_step(folder) == 10
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        "aside-step-20.1",
        "aside-step-30.1",
        "step-10",
    ]
    prune(folder, saved=10, keep=1, also=())
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-10"]


def test_missing_best_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """If the best step is damaged, a run that needs it resumes before it and reaches it again."""
    folder = saved(RunFolder(tmp_path), 10, 20, 30, best=20)
    assert newest_step(folder, needs_best=True) == 30
    flip_a_byte(folder, 20)
    assert newest_step(folder) == 30  # where the last step is selected
    assert newest_step(folder, needs_best=True) == 10
    output = capsys.readouterr().out
    assert (
        "step-30 needs that of its best step 20, which is damaged or gone, and set aside" in output
    )
    assert "step-20 is damaged and set aside" in output
    assert steps(folder) == [10]


def test_missing_checkpoints_are_an_error(tmp_path: Path):
    """If saved checkpoints are missing, the run does not restart from step 0."""
    folder = saved(RunFolder(tmp_path), 10, 20)
    shutil.rmtree(folder.checkpoints)
    with pytest.raises(
        RuntimeError,
        match="2 checkpoints were saved .* and none is in .*. Restore undamaged ones, or",
    ):
        newest_step(folder)


def test_none_saved_and_all_damaged(tmp_path: Path):
    folder = RunFolder(tmp_path)
    assert newest_step(folder) is None
    saved(folder, 10)
    flip_a_byte(folder, 10)
    with pytest.raises(RuntimeError, match="all checkpoints in .* are damaged"):
        newest_step(folder)


def test_pruning_keeps_newest_best_and_later(tmp_path: Path):
    """Steps after the one just saved are kept too."""
    folder = saved(RunFolder(tmp_path), 10, 20, 30, 40)
    prune(folder, saved=40, keep=2, also={10})
    assert steps(folder) == [10, 30, 40]
    saved(folder, 35)
    prune(folder, saved=35, keep=1, also={10})
    assert steps(folder) == [10, 35, 40]


def test_pruning_ignores_quarantined_checkpoints(tmp_path: Path):
    folder = saved(RunFolder(tmp_path), 10, 20, 30)
    flip_a_byte(folder, 30)
    assert newest_step(folder) == 20
    prune(folder, saved=20, keep=1, also=())
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-20"]


def test_keep_every(tmp_path: Path):
    folder = saved(RunFolder(tmp_path), 10, 15, 20, 30, 40)
    prune(folder, saved=40, keep=1, also=(), every=20)
    assert steps(folder) == [20, 40]


def test_temporary_folder_of_a_killed_save(tmp_path: Path):
    """It is deleted once a checkpoint of the same or a later step is complete."""
    folder = saved(RunFolder(tmp_path), 10)
    (folder.checkpoints / "step-20.tmp-abc" / TAG).mkdir(parents=True)
    assert newest_step(folder) == 10
    prune(folder, saved=10, keep=1, also=set())  # step 20 may be in progress
    assert [path.name for path in sorted(folder.checkpoints.iterdir())] == [
        "step-10",
        "step-20.tmp-abc",
    ]
    prune(saved(folder, 20), saved=20, keep=1, also=set())
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-20"]


def test_replaced_attempt_is_an_error(tmp_path: Path):
    lifecycle.begin(str(tmp_path), {})
    check_is_newest(RunFolder(tmp_path), 1)
    (tmp_path / "attempts/2.json").write_text("{}")
    with pytest.raises(RuntimeError, match="attempt 1 has been replaced by attempt 2"):
        check_is_newest(RunFolder(tmp_path), 1)


def test_transient_read_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A checkpoint that cannot be read at the moment is not treated as damaged."""
    folder = saved(RunFolder(tmp_path), 10, 20)
    failures = [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
    ]
    monkeypatch.setattr(checkpoint_files, "READ_PAUSES_S", (0.01, 0.01))

    def unsteady(path: Path, progress: Callable[[int], None]) -> list[object]:
        if failures:
            raise failures.pop()
        return describe(path, progress)

    monkeypatch.setattr(checkpoint_files, "describe", unsteady)
    assert (newest_step(folder), failures) == (20, [])
    failures.append(PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionError):  # it may be undamaged, so nothing is quarantined
        newest_step(folder)
    assert steps(folder) == [10, 20]


def test_saving_a_step_again_replaces_it(tmp_path: Path):
    folder = saved(RunFolder(tmp_path), 10)
    flip_a_byte(folder, 10)
    saved(folder, 10)
    assert newest_step(folder) == 10
    assert (folder.checkpoints / "aside-step-10.1").is_dir()
