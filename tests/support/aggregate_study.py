"""A submitted grid without started runs, and the aggregate command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forked_commands
import yaml

from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.runs.folder import GridFolder, write_atomically


def submit(grid: Grid, runs: list[RunSpec], folder: GridFolder) -> None:
    """Leave the files of a submission. No run has started."""
    submission = folder.new_submission()
    text = yaml.safe_dump(grid.model_dump(mode="json"), sort_keys=False)
    for path in (folder.grid, submission / "grid.yaml"):
        write_atomically(path, text)
    rows = [
        {
            "row": i,
            "run_id": s.run_id,
            "data": [s.config.data.name, s.data_fingerprint],
            "steps": 1,
            "to_do": True,
        }
        for i, s in enumerate(runs)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(submission / "rows.jsonl", lines)
    for spec in runs:
        write_atomically(folder.run(spec.run_id).spec, spec.model_dump_json())


def command(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return forked_commands.run(
        [sys.executable, "-m", "furnace_hpc.aggregate", *arguments],
        cwd=path,
        env={name: value for name, value in os.environ.items() if name != "FURNACE_RUNS"},
    )
