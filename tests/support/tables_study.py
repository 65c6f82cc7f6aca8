"""A study for the tests of tables: run folders of the real writers, with invented numbers."""

import math
import random
from pathlib import Path

from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host import lifecycle
from furnace_hpc.runs.folder import GridFolder, RunFolder, write_atomically, write_json
from furnace_hpc.runs.records.metrics import MetricsFile
from furnace_hpc.runs.records.result import RunResult, write_result
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.table import Ablation

FINGERPRINT = "feedfeedfeedfeed"
GRID = {
    "name": "study",
    "description": "Four loss variants, five seeds.",
    "base": {"deepspeed": "zero1", "steps": 500, "evaluation": {"every": 100, "select": "best"}},
    "seeds": [0, 1, 2, 3, 4],
    "reference": "base",
    "metric": "test/digit/accuracy",
    "variants": {
        "base": {},
        "consistency_only": {"loss.alpha": 0.5},
        "specific_only": {"loss.beta": 0.3},
        "full": {"loss.alpha": 0.5, "loss.beta": 0.3},
    },
}
BONUS = {"base": 0.0, "consistency_only": 0.02, "specific_only": -0.01, "full": 0.03}


def accuracy_of(spec: RunSpec) -> float:
    """An invented accuracy. It depends only on row and seed."""
    seed, salt = spec.config.seed, sum(spec.variant.encode())
    return round(
        0.80 + BONUS.get(spec.variant, 0.0) + 0.002 * ((seed * 7 + salt * seed * seed) % 11), 4
    )


def result_of(spec: RunSpec, **changes) -> RunResult:
    accuracy = changes.pop("accuracy", accuracy_of(spec))
    content = {
        "run_id": spec.run_id,
        "variant": spec.variant,
        "seed": spec.config.seed,
        "steps": 500,
        "selected_step": 400,
        "metrics": {
            "test/digit/accuracy": accuracy,
            "test/digit/loss": 0.5,
            "val/digit/accuracy": accuracy + 0.01,
        },
        "parameters_sha256": f"{spec.config.seed:064x}",
        "num_parameters": 187_402,
        "world_size": 2,
        "num_threads": 1,
        "attempts": 1,
        "train_s": 60.0 + spec.config.seed,
        "wall_s": 80.0,
        "samples_per_s": 250.0,
        "peak_memory_gib": 0.5 + 0.01 * spec.config.seed,
        "device": "a CPU",
        "precision": "bf16",
        "zero_stage": 1,
        "data_fingerprint": spec.data_fingerprint,
        "code_hash": "c0dec0de",
        "commit": "1234567",
        "versions": {"torch": "2.13.0"},
    }
    return RunResult.model_validate(content | changes)


def finish(spec: RunSpec, folder: GridFolder, **changes) -> RunFolder:
    """Write the run folder of a finished run."""
    run = folder.run(spec.run_id)
    write_atomically(run.spec, spec.model_dump_json())
    final = accuracy_of(spec)
    metrics = MetricsFile(run.metrics(1))
    for step in range(100, 501, 100):
        metrics.write({"step": step, "kind": "train", "loss": 1.0})
        metrics.write(
            {
                "step": step,
                "kind": "val",
                "val/digit/accuracy": final * (1 - 0.8 * 0.4 ** (step / 100)),
            }
        )
    metrics.close()
    spent = {
        "attempt": 1,
        "start_unix_s": 1000.0,
        "end_unix_s": 1080.0,
        "reason": "done",
        "step": 500,
    }
    write_json(run.attempt(1), spent | {"world_size": 2, "gpus": 2})
    write_result(run, result_of(spec, **changes))
    return run


def fail(spec: RunSpec, folder: GridFolder, error: str) -> None:
    """Write the run folder of a run whose first rank crashed."""
    run = folder.run(spec.run_id)
    write_atomically(run.spec, spec.model_dump_json())
    number = lifecycle.begin(str(run.path), {})
    write_json(
        run.verdict(number, 0), {"verdict": "crash", "error": error, "step": 120, "unix_s": 1.0}
    )
    assert lifecycle.decide(str(run.path), number, 1) == "fail"
    record = lifecycle.read_attempt(str(run.path), number)
    write_json(run.attempt(number), record | {"start_unix_s": 1000.0, "end_unix_s": 1036.0})


def study(**changes) -> tuple[Grid, list[RunSpec]]:
    grid = Grid.model_validate(GRID | changes)
    return grid, expand(grid, {"tridigits": FINGERPRINT})


def complete(path: Path, **changes) -> Ablation:
    grid, runs = study(**changes)
    folder = GridFolder(path / "study")
    for spec in runs:
        finish(spec, folder)
    return collect(grid, runs, folder)


def troubled(path: Path, order: int = 0) -> Ablation:
    """A study with every kind of problem, for the golden files."""
    grid, runs = study(description="Loss terms at 100 % of R&D_budget: 5 $ ~ #1 {really}")
    folder = GridFolder(path / "study")
    shuffled = list(runs)
    random.Random(order).shuffle(shuffled)
    for spec in shuffled:
        match spec.variant, spec.config.seed:
            case "base", 4:
                pass  # never submitted
            case "consistency_only", 3:
                fail(spec, folder, "RuntimeError: a|b <c> 100% of x_y\n at C:\\tmp ☃")
            case "consistency_only", 1:
                finish(spec, folder, accuracy=math.nan)
            case "full", 0 | 1:
                finish(spec, folder, code_hash="01d01d01", world_size=4, commit=None)
            case "specific_only", seed if seed:
                pass
            case _:
                finish(spec, folder)
    older, _ = study(base=grid.base | {"steps": 400})
    finish(expand(older, {"tridigits": FINGERPRINT})[0], folder)
    finish(expand(grid, {"tridigits": "0" * 16})[0], folder)
    return collect(grid, runs, folder)


def row(ablation: Ablation, variant: str):
    return next(row for row in ablation.rows if row.variant == variant)


def notes(ablation: Ablation) -> str:
    return "\n".join(note.text for note in ablation.notes)
