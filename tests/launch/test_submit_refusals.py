"""Files with which a submission cannot work: one error line, and no file is changed."""

import re
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from login_study import (
    FINGERPRINT,
    GRID,
    begin,
    command,
    dead_holder,
    grid,
    pack,
    planned,
    refused,
    specs,
    write_grid,
)

from furnace_hpc.config.cluster import ClusterProfile, check_portable
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.launch.submission import grid_lock
from furnace_hpc.runs.folder import GridFolder


@pytest.fixture
def place(tmp_path):
    """A working directory with a grid and its packed data."""
    write_grid(tmp_path)
    pack(tmp_path / "data" / "tridigits")
    return tmp_path


def only(place: Path, *arguments: str) -> str:
    [line] = refused(place, "study.yaml", *arguments)
    return line


def test_runs_of_other_code_are_refused(place):
    begin(specs()[1], GridFolder(place / "runs" / "study"), dead_holder(), code="01d01d01d01d")
    message = only(place)
    assert message.startswith(
        "1 unfinished run of grid 'study' began with other code, which has no snapshot (base-s1-"
    )
    assert message.endswith("or submit with --code new to start again at step 0")


def test_two_submits_at_the_same_time(place):
    with grid_lock(GridFolder(place / "runs" / "study")):
        assert only(place, "--cluster", "local").startswith(
            "grid 'study' is being submitted or run by process "
        )


def test_data_without_or_with_a_damaged_manifest(place):
    manifest = place / "data" / "tridigits" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace(FINGERPRINT, "1")[:-20])
    assert "manifest.json is not a readable manifest" in only(place)
    manifest.unlink()
    assert only(place).startswith(
        "data folder 'data/tridigits' has no manifest.json. Pack the data set with"
    )


def test_data_that_does_not_match_its_manifest(place):
    column = place / "data" / "tridigits" / "train" / "label.digit.npy"
    column.write_bytes(b"short")
    assert only(place).endswith(
        "label.digit.npy has 5 bytes, the manifest says 136. Pack the data set again"
    )
    column.unlink()
    assert only(place).endswith("label.digit.npy is missing. Pack the data set again")


def test_data_that_lacks_what_a_row_wants(tmp_path):
    write_grid(tmp_path)
    pack(tmp_path / "data" / "tridigits", modalities=["text"])
    assert "has no modality 'image'; valid: text" in only(tmp_path)
    write_grid(tmp_path, metric="test/digits/accuracy")
    message = (
        "row 'base': data set data/tridigits has no label column for task 'digits'; "
        "did you mean 'digit'?"
    )
    assert only(tmp_path, "--set", "tasks=[{name: digits}]").startswith(message)


def test_a_file_where_the_runs_should_lie(place):
    (place / "runs").write_text("not a folder")
    assert re.match(
        r"furnace submit could not continue: \S*runs\S*: (Not a directory|File exists): ",
        only(place),
    )


@contextmanager
def mounted(folder: Path, *options: str):
    folder.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", *options, str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"mounting does not work here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_no_permission_to_write(place):
    with mounted(place / "runs", "-t", "tmpfs", "-o", "ro,size=64k", "none"):
        assert only(place).endswith(
            "Read-only file system: that file system is read-only: choose another place"
        )


def test_no_space(place):
    with mounted(place / "runs", "-t", "tmpfs", "-o", "size=16k", "none") as full:
        (full / "study").mkdir()
        with pytest.raises(OSError, match="No space left"):
            (full / "more").write_bytes(bytes(1 << 20))
        message = only(place)
        assert "No space left on device: free some space there, or choose another" in message


def test_a_portable_run_with_gpus_is_refused(tmp_path, monkeypatch):
    """At submission, not when its job starts."""
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    profile = ClusterProfile(name="c", executor="slurm", gpus_per_node=4)
    asked = grid(base={**GRID["base"], "portable": True})
    with pytest.raises(ConfigError) as error:
        planned(tmp_path, asked, profile)
    assert str(error.value).endswith(
        "portable: true trains on CPUs, and cluster 'c' gives each run 4 GPUs. Add --set "
        "portable=false, or use a profile with gpus_per_node: 0"
    )


def test_the_command_queues_no_portable_run_on_gpus(place, monkeypatch):
    """The error names all rows once, and nothing is written."""
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    write_grid(place, base=GRID["base"] | {"portable": True})
    (place / "c.yaml").write_text("{name: c, executor: slurm, gpus_per_node: 4}")
    [line] = refused(place, "study.yaml", "--cluster", "c.yaml", "--prepare")
    assert "portable: true trains on CPUs, and cluster 'c' gives each run 4 GPUs" in line
    assert "Add --set portable=false, or use a profile with gpus_per_node: 0" in line
    words = ("--cluster", "c.yaml", "--prepare", "--set", "portable=false")
    assert command("submit", place, "--grid", "study.yaml", *words).returncode == 0


@pytest.mark.parametrize(
    ("gpus", "setup", "portable"),
    [(4, "[]", False), (0, "[]", True), (4, "[export DS_ACCELERATOR=cpu]", True)],
    ids=["not portable", "no GPUs", "GPUs unused"],
)
def test_no_gpus_are_not_refused(monkeypatch, gpus, setup, portable):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    profile = ClusterProfile(
        name="c", executor="slurm", gpus_per_node=gpus, setup=tuple(yaml.safe_load(setup))
    )
    spec = specs(base={**GRID["base"], "portable": portable})[0]
    check_portable(profile, spec.config, spec.resources)
