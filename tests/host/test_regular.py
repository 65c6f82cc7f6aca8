"""Named pipes, devices and sockets in the place of files are refused at once."""

import os
import shutil
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from login_study import begin, command, finish, grid, pack, planned, specs, write_grid

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.config.parsing.lookup import read_yaml
from furnace_hpc.data.columns import map_file, open_columns
from furnace_hpc.host import gpu_check, lifecycle
from furnace_hpc.host.regular_file import (
    IrregularFile,
    check_regular,
    open_regular,
    read_regular,
    read_regular_text,
)
from furnace_hpc.launch.submission import read_holder, write_submission
from furnace_hpc.monitor.assignments import job_assignments
from furnace_hpc.monitor.job_cache import JobCache
from furnace_hpc.monitor.job_cache import _read as read_cached
from furnace_hpc.monitor.logs import print_logs
from furnace_hpc.monitor.loss_curve import loss_curve
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import submissions
from furnace_hpc.runs.records.attempts import read_attempts
from furnace_hpc.runs.records.checkpoint_files import complete, describe, is_complete
from furnace_hpc.runs.records.metrics import last_record, read_metrics
from furnace_hpc.runs.records.result import read_result
from furnace_hpc.runs.state import read_status
from furnace_hpc.tables.reading.run_files import read_record


@pytest.fixture(autouse=True)
def _timeout():
    """Fail if anything waits for a pipe."""

    def give_up(*_: object) -> None:
        raise TimeoutError("something waits for a pipe")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(100)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def to_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)


def make(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()


KINDS = {
    "pipe": "is a named pipe, not",
    "link to a pipe": "is a named pipe, not",
    "socket": "is a socket",
    "device": "is a device, not",
    "folder": "Is a directory",
}


@pytest.mark.parametrize("kind", KINDS)
def test_irregular_files_are_refused(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets must be short
    path = Path("file")
    make(path, kind)
    for read in (open_regular, read_regular, read_regular_text, check_regular):
        with pytest.raises(IrregularFile, match=KINDS[kind]) as refused:
            read(path)
        assert isinstance(refused.value, OSError)
        assert isinstance(refused.value, ValueError)  # callers treat it as damaged
        assert refused.value.filename == "file"


def test_regular_file_is_read_up_to_a_size(tmp_path):
    path = tmp_path / "file"
    path.write_bytes("ä\r\nb".encode())
    (tmp_path / "link").symlink_to(path)
    for name in (path, tmp_path / "link", str(path)):
        assert read_regular(name) == "ä\r\nb".encode()
        assert read_regular_text(name) == "ä\nb"
    with open_regular(path) as file:
        assert os.get_blocking(file.fileno())
    assert read_regular(path, at_most=5) == path.read_bytes()
    with pytest.raises(IrregularFile, match="has 5 bytes, at most 4 are read"):
        read_regular(path, at_most=4)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none")


FILES = (
    "spec.json",
    "attempts/1.json",
    "verdicts/1-0.jsonl",
    "metrics/1.jsonl",
    "metrics/2.jsonl",
    "logs/1-0.log",
)


@pytest.mark.parametrize("name", [*FILES, "checkpoints.jsonl"])
def test_pipe_in_a_run_counts_as_damage(tmp_path, name):
    folder = GridFolder(tmp_path / "runs" / "study")
    run = finish(specs()[0], folder)
    to_pipe(run.path / name)
    read_record(run)
    read_status(run)
    read_metrics(run)
    loss_curve(run, 2, 10)
    for number in (1, 2):
        last_record(run.metrics(number))
        lifecycle.last_step(str(run.path), number)
    read_attempts(run)
    assert read_result(run).run_id == run.run_id
    record = read_record(run)
    assert record.torn == (1 if name.startswith("metrics") else 0)
    assert (record.data is None) == (name == "spec.json")


def test_pipe_as_result_is_refused_at_once(tmp_path):
    plan = planned(tmp_path, grid())
    run = finish(specs()[0], plan.folder)
    to_pipe(run.result)
    start_s = time.monotonic()
    for read in (lambda: read_result(run), lambda: planned(tmp_path, grid())):
        with pytest.raises(ConfigError, match=r"result.json is not a valid result .*named pipe"):
            read()
    assert read_record(run).result == b"?"
    read_status(run)
    assert time.monotonic() - start_s < 20


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "journal.jsonl", "profile.json", "code", "grid.yaml", "specs.jsonl"]
)
def test_pipe_in_a_submission_stops_no_reader(tmp_path, name, capsys):
    plan = planned(tmp_path, grid())
    path = write_submission(plan).path
    begin(specs()[0], plan.folder)
    to_pipe(path / name)
    [submission] = submissions(plan.folder)
    for read in (
        lambda: submission.rows,
        lambda: submission.code,
        submission.sbatch_calls,
        submission.cancelled,
    ):
        with suppress(IrregularFile):
            read()
    with suppress(ConfigError, IrregularFile):
        print_logs(plan.folder, "base", 5)
    to_pipe(plan.folder.lock)
    assert read_holder(plan.folder) is None


def test_pipe_in_a_checkpoint_counts_as_damage(tmp_path):
    aside = tmp_path / "step-1.tmp-1"
    aside.mkdir()
    (aside / "model.pt").write_bytes(b"x")
    complete(aside, final := tmp_path / "step-1", {}, {"model.pt": describe(aside / "model.pt")})
    assert is_complete(final)
    to_pipe(final / "model.pt")
    assert not is_complete(final)
    (final / "model.pt").unlink()
    (final / "model.pt").write_bytes(b"x")
    to_pipe(final / "manifest.json")
    assert not is_complete(final)


def test_pipe_in_a_pack_counts_as_damage(small_data, tmp_path):
    shutil.copytree(small_data, tmp_path / "set")
    open_columns(tmp_path / "set", verify=True)
    column = tmp_path / "set" / "val" / "present.npy"
    to_pipe(column)
    with pytest.raises(ConfigError, match="present.npy"):
        open_columns(tmp_path / "set", verify=True)
    with pytest.raises(ValueError, match="named pipe"):
        map_file(column)
    to_pipe(tmp_path / "set" / "manifest.json")
    with pytest.raises(ConfigError, match=r"manifest.json is not a readable manifest .*named pipe"):
        read_manifest(tmp_path / "set")


def test_pipe_in_an_exported_model_is_refused(tmp_path):
    from furnace_hpc.inference.model_folder import CONFIG, read_exported

    to_pipe(tmp_path / CONFIG)
    with pytest.raises(ConfigError, match=CONFIG):
        read_exported(tmp_path)


def test_pipe_as_grid_file_is_refused(tmp_path):
    to_pipe(tmp_path / "grid.yaml")
    with pytest.raises(ConfigError, match=r"grid.yaml: cannot be read: is a named pipe"):
        read_yaml(tmp_path / "grid.yaml")


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 5000, "[1]", "null", "7", '{"retries": {}}', "\xff", ""]
)
def test_json_of_another_shape_counts_as_damage(tmp_path, content):
    """Too deep, another type, not UTF-8, or empty."""
    plan = planned(tmp_path, grid())
    submission = write_submission(plan)
    run = begin(specs()[0], plan.folder)
    files = [submission.path / name for name in ("profile.json", "gpus.json")]
    files += [plan.folder.slurm_cache, plan.folder.lock, run.attempt(1), run.verdict(1, 0)]
    checkpoint = run.checkpoint(1)
    checkpoint.mkdir(parents=True)
    for path in (*files, checkpoint / "manifest.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode("latin-1"))
    with suppress(ConfigError):  # of an attempt with other keys
        job_assignments(plan.folder)
    assert read_cached(plan.folder) == JobCache()
    assert read_holder(plan.folder) is None or content.startswith('{"retries"')
    assert gpu_check._read(str(submission.path)) in ({}, {"retries": {}})
    for read in (read_status, read_attempts):
        with suppress(ConfigError):  # of a record with other keys
            read(run)
    assert lifecycle.read_verdicts(str(run.path), 1) == []
    assert not is_complete(checkpoint)


@pytest.mark.slow
def test_aggregate_and_status_skip_pipes(tmp_path):
    """Pipes replace metrics/2.jsonl, predictions and a log. The commands use the other files."""
    write_grid(tmp_path)
    pack(tmp_path / "data" / "tridigits")
    write_submission(planned(tmp_path / "runs", grid()))
    folder = GridFolder(tmp_path / "runs" / "study")
    runs = [finish(spec, folder) for spec in specs()]
    np.savez(tmp_path / "any.npz", x=np.zeros(1))
    runs[0].predictions("test").parent.mkdir()
    for path in (runs[0].metrics(2), runs[1].log(1, 0), runs[0].predictions("test")):
        to_pipe(path)
    for more in (("aggregate",), ("aggregate", "--samples"), ("status",)):
        done = command(
            more[0],
            tmp_path,
            "--grid",
            "study.yaml" if more[0] == "aggregate" else "study",
            *more[1:],
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    assert "done" in done.stdout
