"""A study for tests of the login node: grid, packed data and run folders, without numpy."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked_commands
import yaml
from tables_study import result_of

from furnace_hpc.cli import module_of
from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host import lifecycle
from furnace_hpc.launch.planning.plan import Choices, Plan
from furnace_hpc.launch.planning.planner import make_plan
from furnace_hpc.runs.folder import GridFolder, RunFolder, write_atomically, write_json
from furnace_hpc.runs.records.metrics import MetricsFile
from furnace_hpc.runs.records.result import write_result
from furnace_hpc.runs.snapshot import source

CODE = "c0dec0dec0de"
FINGERPRINT = "feedfeedfeedfeed"
GRID: dict[str, Any] = {
    "name": "study",
    "base": {"deepspeed": "zero1", "steps": 40, "global_batch_size": 16},
    "seeds": [0, 1],
    "reference": "base",
    "metric": "test/digit/accuracy",
    "variants": {"base": {}, "full": {"loss.alpha": 0.5, "loss.beta": 0.3}},
}
LOCAL = ClusterProfile(name="local", executor="local")
NO_CONTROLLER = "ClusterName=none\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\n"


def without_controller(folder: Path) -> dict[str, str]:
    """An environment in which Slurm's commands, if there are any, fail at once.

    They would wait nine seconds for the controller of a cluster that is down, and ask one that is
    up.
    """
    path = folder / "slurm.conf"
    path.write_text(NO_CONTROLLER)
    return dict(os.environ) | {"SLURM_CONF": str(path)}


def grid(**changes: Any) -> Grid:
    return Grid.model_validate(GRID | changes)


def specs(**changes: Any) -> list[RunSpec]:
    return expand(grid(**changes), {"tridigits": FINGERPRINT})


def write_grid(folder: Path, **changes: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(GRID | changes, sort_keys=False))
    return path


def pack(folder: Path, **changes: Any) -> Path:
    """The part of a packed data set that the login node reads: a manifest and a file."""
    content = b"\x93NUMPY" + bytes(122) + bytes(8)
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "label.digit.npy").write_bytes(content)
    manifest: dict[str, Any] = {
        "format": 1,
        "dataset": "tridigits",
        "modalities": ["text", "image", "audio"],
        "splits": {"train": 8, "val": 8, "test": 8},
        "columns": {"label.digit": {"dtype": "uint8", "shape": []}},
        "files": {"train/label.digit.npy": {"num_bytes": len(content), "xxh3_128": "0" * 32}},
        "labels": {
            "digit": {"kind": "single_label", "classes": [str(digit) for digit in range(10)]}
        },
        "statistics": {},
        "vocab_size": 100,
        "preprocessing": {},
        "versions": {},
        "fingerprint": FINGERPRINT,
    }
    write_json(folder / "manifest.json", manifest | changes)
    return folder


def planned(path: Path, asked: Grid, profile: ClusterProfile = LOCAL, **choices: Any) -> Plan:
    """The plan of every run of the grid, over `path`/<grid name>."""
    runs = expand(asked, {"tridigits": FINGERPRINT})
    chosen = {
        "code_hash": CODE,
        "snapshot": source().snapshot_hash,
        "data_root": Path("data"),
    } | choices
    return make_plan(asked, runs, profile, GridFolder(path / asked.name), Choices(**chosen))


def begin(
    spec: RunSpec,
    folder: GridFolder,
    who: dict[str, Any] | None = None,
    code: str = CODE,
    **facts: Any,
) -> RunFolder:
    """A run whose attempt has begun, with metrics up to step 7."""
    run = folder.run(spec.run_id)
    if not run.spec.exists():
        write_atomically(run.spec, spec.model_dump_json(indent=2) + "\n")
    number = lifecycle.begin(str(run.path), {"code_hash": code, "job_id": None} | facts, who)
    metrics = MetricsFile(run.metrics(number))
    metrics.write({"step": 7, "kind": "train", "train/loss": 1.0})
    metrics.close()
    return run


def end(run: RunFolder, *verdicts: str, exit_code: int = 1, error: str = "ValueError: no") -> str:
    """End the newest attempt with these verdicts of its ranks. Return the decision of the host."""
    number = lifecycle.newest_attempt(str(run.path))
    for rank, verdict in enumerate(verdicts):
        word = {
            "verdict": verdict,
            "step": 9,
            "error": error if verdict == "crash" else "",
            "unix_s": float(rank),
        }
        write_json(run.verdict(number, rank), word)
    return lifecycle.decide(str(run.path), number, exit_code)


def finish(spec: RunSpec, folder: GridFolder, code: str = CODE) -> RunFolder:
    """A run that is done."""
    run = begin(spec, folder, code=code)
    write_result(run, result_of(spec, code_hash=code))
    assert end(run, "done", exit_code=0) == "done"
    return run


def dead_holder() -> dict[str, Any]:
    """A holder of this boot of this host whose process has ended."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE
    ) as process:
        who = lifecycle.holder(process.pid)
        assert lifecycle.is_alive(who)
        process.communicate(b"\n")
    return who


def tree(folder: Path) -> dict[str, str]:
    """Every path under `folder` with a hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }


def command(module: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m furnace_hpc.<module>` in `folder`, as on a machine without Slurm.

    A command in `furnace_hpc.commands` is run by `python -m furnace_hpc <module>`.
    """
    name, first = module_of(module), []
    if name.startswith("furnace_hpc.commands."):
        name, first = "furnace_hpc", [module]
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("FURNACE_RUNS", "FURNACE_DATA")
    }
    return forked_commands.run(
        [sys.executable, "-m", name, *first, *arguments],
        cwd=folder,
        env=kept | {"COLUMNS": "200", "PATH": "/nowhere"},
        timeout=200,
    )


def refused(place: Path, grid: str, *arguments: str) -> list[str]:
    """The lines of a submit's error, without `error: `. It exits with 2 and changes nothing."""
    before = tree(place)
    done = command("submit", place, "--grid", grid, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines), done.stderr
    assert tree(place) == before
    return [line.removeprefix("error: ") for line in lines]


def read_rows(submission: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (submission / "rows.jsonl").read_text().splitlines()]


def speak_at_once(command: list[str], count: int) -> tuple[list[str], list[int]]:
    """Run a command in `count` processes at one moment. Return their first lines and their ids.

    All of them live until each has printed a line.
    """
    kinds: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **kinds) for _ in range(count)]
    try:
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        words = [process.stdout.readline().strip() for process in processes]
    finally:
        for process in processes:
            process.communicate("end\n", timeout=30)
    return words, [process.pid for process in processes]
