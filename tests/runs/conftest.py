"""Fixtures of the tests about trust."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from furnace_hpc.host.access import GROUP_ACCESS


@pytest.fixture
def umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the process's umask and group access after the test."""
    monkeypatch.setenv(GROUP_ACCESS, "")
    monkeypatch.delenv(GROUP_ACCESS)
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def tree(tmp_path: Path, umask: None) -> tuple[Path, Path]:
    """Make a checkpoint with one file. Returns the runs' root and the checkpoint."""
    step = tmp_path / "runs" / "grid" / "run" / "checkpoints" / "step-1"
    (step / "zero").mkdir(parents=True)
    (step / "zero" / "model.pt").write_bytes(b"x")
    return tmp_path / "runs", step
