"""A tiny run whose ranks are killed, and its differences from an undisturbed run."""

import json
import shutil
from pathlib import Path
from typing import Any

from furnace_hpc.config.parsing.lookup import find_file, read_json
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.config.train_config import RunSpec, TrainConfig
from furnace_hpc.host import lifecycle
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.metrics import MEASURED, read_metrics


def new_run(
    place: Path,
    data: Path,
    stage: int,
    size: int,
    steps: int,
    changes: dict[str, Any] | None = None,
) -> Path:
    """The folder of a new tiny run, with dropout. It validates and saves at different steps."""
    shutil.rmtree(place, ignore_errors=True)
    content = {
        "deepspeed": read_json(find_file("DeepSpeed file", f"zero{stage}")),
        "model": {"width": 16, "num_heads": 2, "feedforward": 32, "text_layers": 1},
        "steps": steps,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "evaluation": {"every": 5, "batch_size": 20},
        "checkpoint_every": 3,
        "log_every": 1,
    }
    fingerprint = json.loads((data / "manifest.json").read_text())["fingerprint"]
    config = TrainConfig.model_validate(content | (changes or {}))
    spec = RunSpec(
        grid="resume",
        variant=f"z{stage}p{size}",
        config=config,
        resources=Resources(),
        data_fingerprint=fingerprint,
    )
    lifecycle.write_spec(str(place / spec.run_id), spec.model_dump_json())
    return place / spec.run_id


def differences(folder: Path, calm: Path) -> list[str]:
    """Names of all differences from the undisturbed run."""
    if not (folder / "result.json").exists():
        return ["not done"]
    here, there = (json.loads((place / "result.json").read_text()) for place in (folder, calm))
    found = [
        name
        for name in ("parameters_sha256", "selected_step", "metrics")
        if here[name] != there[name]
    ]
    if loss_curve(folder) != loss_curve(calm):
        found.append("loss curve")
    if sample_order(folder) != sample_order(calm):
        found.append("sample order")
    for split in ("val", "test"):
        if (folder / f"predictions/{split}.npz").read_bytes() != (
            calm / f"predictions/{split}.npz"
        ).read_bytes():
            found.append(f"predictions on {split}")
    return found


def repeated_steps(folder: Path) -> int:
    """The largest number of steps that an attempt repeated."""
    best, most = 0, 0
    for path in sorted(folder.glob("metrics/*.jsonl"), key=lambda path: int(path.stem)):
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        steps = [record["step"] for record in map(json.loads, lines) if record["kind"] == "train"]
        if steps:
            most, best = max(most, best - min(steps) + 1), max(best, *steps)
    return most


def sample_order(folder: Path) -> dict[tuple[int, int, int], list[int]]:
    """(rank, step, micro-step) -> sample indices. Later attempts replace earlier ones."""
    found: dict[tuple[int, int, int], list[int]] = {}
    for path in sorted(
        folder.glob("order/*.jsonl"), key=lambda path: [int(part) for part in path.stem.split("-")]
    ):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                rank, step, micro_step, *indices = json.loads(line)
                found[rank, step, micro_step] = indices
    return found


def loss_curve(folder: Path) -> dict[tuple[int, str], dict[str, float]]:
    """(step, kind) -> all numbers of the record except times and the attempt."""
    return {
        (r["step"], r["kind"]): {k: v for k, v in r.items() if k not in MEASURED}
        for r in read_metrics(RunFolder(folder))
    }
