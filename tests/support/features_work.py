"""Work of the ranks in test_cached_features.py: real runs, from set-up to the result."""

import json
import os
import shutil
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
    content = config.model_dump_json()
    return {"do": do, "name": name, "data": str(data), "config": content, **more}


def train(processes: Any, folder: Path, given: Case) -> Case:
    """Train a run to its end, from its newest checkpoint. Return its result.

    With `features: compute` the features are computed in each step.
    """
    os.environ[CACHE] = given.get("features", "")
    run = RunFolder(folder / "runs" / "grid" / given["name"])
    attempt = processes.broadcast(_begin(run, given) if processes.is_rank_zero else 0)
    verdict = RankVerdict(run, attempt, processes.rank)
    watchdog = Watchdog.for_run(run, attempt, verdict)
    context = set_up(run, attempt, processes, watchdog, StopRequest())
    read = sorted({"text", "image", "audio"} & _sources(context.reader).keys())
    assert _train(context, verdict) is None
    context.engine.destroy()
    processes.barrier()
    result = json.loads(run.result.read_text())
    return given | {"result": result, "read": read, "flops": context.flops}


def resume(processes: Any, folder: Path, given: Case) -> Case:
    """Train a finished run again, as if it had been stopped at the checkpoint of `step`."""
    source = RunFolder(folder / "runs" / "grid" / given["of"])
    run = RunFolder(folder / "runs" / "grid" / given["name"])
    if processes.is_rank_zero:
        shutil.copytree(source.path, run.path)
        run.result.unlink()
        for checkpoint in run.checkpoints.glob("step-*"):
            if checkpoint != run.checkpoint(given["step"]):
                shutil.rmtree(checkpoint)
        record = json.loads(run.attempt(1).read_text())
        ended = {"reason": "stopped", "step": given["step"], "end_unix_s": record["start_unix_s"]}
        run.attempt(1).write_text(json.dumps(record | ended))
    return train(processes, folder, given)


def _sources(reader: BatchReader) -> dict[str, Any]:
    return reader._sources


def _begin(run: RunFolder, given: Case) -> int:
    """Write the spec of a run and the record of its next attempt. Return the attempt's number."""
    data = Path(given["data"])
    spec = RunSpec(
        grid="g",
        variant="base",
        config=TrainConfig.model_validate_json(given["config"]),
        resources=Resources(),
        data_fingerprint=read_manifest(data).fingerprint,
    )
    run.path.mkdir(parents=True, exist_ok=True)
    write_atomically(run.spec, spec.model_dump_json())
    return lifecycle.begin(str(run.path), {"code_hash": code_hash(), "data_dir": str(data)})
