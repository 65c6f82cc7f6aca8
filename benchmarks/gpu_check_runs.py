"""The parts of gpu_check.py that train whole runs, as `furnace submit` starts them."""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_check_parts import check


def step_time(options: argparse.Namespace) -> None:
    """step_time_s of the metrics, against the wall clock between the records."""
    from furnace_hpc.runs.folder import RunFolder
    from furnace_hpc.runs.records.metrics import read_metrics

    changes: dict[str, Any] = {"steps": 40, "log_every": 1, "checkpoint_every": 10_000}
    if options.small:
        changes["steps"] = 12
    folder = make_run(options, "time", changes)
    code = train_run(folder, options)
    records = [r for r in read_metrics(RunFolder(folder)) if r["kind"] == "train"]
    recorded_s = sum(record["step_time_s"] for record in records[5:])
    wall_s = records[-1]["time_unix_s"] - records[4]["time_unix_s"]
    is_right = code == 0 and abs(recorded_s / wall_s - 1) < 0.1
    check(is_right, "step_time_s", f"{recorded_s:.2f} s recorded in {wall_s:.2f} s")


def resumes(options: argparse.Namespace) -> None:
    """A run that is stopped and resumed has the bits of a run that is not."""
    changes: dict[str, Any] = {"steps": 60, "checkpoint_every": 20, "log_every": 10}
    stop_at = 20
    if options.small:
        changes, stop_at = {"steps": 12, "checkpoint_every": 4, "log_every": 1}, 4
    hashes, attempts = [], []
    for name in ("whole", "stopped"):
        folder = make_run(options, name, changes)
        code = train_run(folder, options, stop_at if name == "stopped" else 0)
        attempts.append(1)
        while not (folder / "result.json").exists() and attempts[-1] < 4:
            code = train_run(folder, options)
            attempts[-1] += 1
        result = {}
        if (folder / "result.json").exists():
            result = json.loads((folder / "result.json").read_text())
        hashes.append(result.get("parameters_sha256", f"exit code {code}")[:12])
    is_right = hashes[0] == hashes[1] and attempts[1] > 1
    found = f"{hashes[0]} and, in {attempts[1]} attempts, {hashes[1]}"
    check(is_right, f"resumes with the same bits, {options.argument}", found)


def make_run(options: argparse.Namespace, name: str, changes: dict[str, Any]) -> Path:
    """A run folder below the check's temporary folder."""
    from furnace_hpc.config.parsing.lookup import find_file, read_json
    from furnace_hpc.config.sections.resources import Resources
    from furnace_hpc.config.train_config import RunSpec, TrainConfig
    from furnace_hpc.host import lifecycle

    model = {"width": 192, "num_heads": 3, "feedforward": 768, "text_layers": 4}
    model |= {"fusion_layers": 2, "image_encoder": "vit", "image_layers": 4}
    content: dict[str, Any] = {"global_batch_size": 64, "micro_batch_size": 32}
    if options.small:
        model |= {"width": 24, "feedforward": 32, "text_layers": 1, "image_layers": 1}
        content = {"global_batch_size": 8, "micro_batch_size": 4}
    content |= {
        "deepspeed": read_json(find_file("DeepSpeed file", options.argument)),
        "model": model,
        "loss": {"alpha": 0.5, "beta": 0.3, "info_nce": 0.1},
        "evaluation": {"every": 10_000, "batch_size": 64},
        **changes,
    }
    manifest = json.loads((Path(options.data) / "manifest.json").read_text())
    spec = RunSpec(
        grid="check",
        variant=name,
        config=TrainConfig.model_validate(content),
        resources=Resources(),
        data_fingerprint=manifest["fingerprint"],
    )
    place = Path(tempfile.mkdtemp(dir=options.runs)) / "check"
    lifecycle.write_spec(str(place / spec.run_id), spec.model_dump_json())
    return place / spec.run_id


def train_run(folder: Path, options: argparse.Namespace, stop_at: int = 0) -> int:
    """Train a run, and stop it after a step if one is given. Return the exit code."""
    command = [sys.executable, "-m", "furnace_hpc.train", str(folder), "--data-dir", options.data]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if stop_at:
        while child.poll() is None and _last_step(folder) < stop_at:
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
    output, _ = child.communicate(timeout=500)
    if child.returncode not in (0, 85):
        print(output[-1500:], file=sys.stderr)
    return child.returncode


def _last_step(folder: Path) -> int:
    from furnace_hpc.runs.folder import RunFolder
    from furnace_hpc.runs.records.metrics import read_metrics

    return max((record["step"] for record in read_metrics(RunFolder(folder))), default=0)
