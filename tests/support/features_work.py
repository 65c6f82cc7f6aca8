"""Work of the ranks in test_cached_features.py: real runs of set-up, training and result."""

import json
import os
from pathlib import Path
from typing import Any

from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.config.train_config import RunSpec, TrainConfig
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.engine.features.build import CACHE
from furnace_hpc.engine.loop import _train
from furnace_hpc.engine.ranks.stop import StopRequest
from furnace_hpc.engine.ranks.watchdog import Watchdog
from furnace_hpc.engine.setup import set_up
from furnace_hpc.host import lifecycle
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import RunFolder, write_atomically
from furnace_hpc.runs.records.verdict import RankVerdict

Case = dict[str, Any]
"""Keys: do (function), name (of the run's folder), data, config (JSON), and more."""


def case(name: str, data: Path, config: TrainConfig, do: str = "train", **more: Any) -> Case:
    """A case for forked_ranks.run_phases."""
    return {
        "do": do,
        "name": name,
        "data": str(data),
        "config": config.model_dump_json(),
        **more,
    }


def train(processes: Any, folder: Path, given: Case) -> Case:
    """Train a run to its end. Return its result, and the modalities whose raw input was read.

    With `features: compute` the features are computed in each step.
    """
    os.environ[CACHE] = given.get("features", "")
    run = _attempt(processes, folder, given)
    verdict = RankVerdict(run, 1, processes.rank)
    context = set_up(run, 1, processes, Watchdog.for_run(run, 1, verdict), StopRequest())
    read = sorted({"text", "image", "audio"} & _sources(context.reader).keys())
    assert _train(context, verdict) is None
    context.engine.destroy()
    processes.barrier()
    result = json.loads(run.result.read_text())
    return given | {"result": result, "read": read, "flops": context.flops}


def _sources(reader: BatchReader) -> dict[str, Any]:
    return reader._sources


def _attempt(processes: Any, folder: Path, given: Case) -> RunFolder:
    """The folder of the run, with an attempt that begins now."""
    data = Path(given["data"])
    run = RunFolder(folder / "runs" / "grid" / given["name"])
    if processes.is_rank_zero:
        spec = RunSpec(
            grid="g",
            variant="base",
            config=TrainConfig.model_validate_json(given["config"]),
            resources=Resources(),
            data_fingerprint=read_manifest(data).fingerprint,
        )
        run.path.mkdir(parents=True, exist_ok=True)
        write_atomically(run.spec, spec.model_dump_json())
        lifecycle.begin(str(run.path), {"code_hash": code_hash(), "data_dir": str(data)})
    processes.barrier()
    return run
