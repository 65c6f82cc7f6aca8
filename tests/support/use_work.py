"""Work of the ranks to compare exported and live models, for forked_ranks.run_phases."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from elastic_work import saver_of
from make import make_config
from rank_work import FP32, MODALITIES, reader_of, zero_steps

from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.config.metrics import subsets
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.runs.folder import RunFolder, write_atomically, write_json

STEPS, ROWS = 3, 8
SUBSETS = subsets((0, 1, 2))


def make(processes: Any, folder: Path, case: dict[str, Any]) -> str:
    """Train some steps, save, and write the live network's answers with each subset."""
    run, data, stage = RunFolder(folder / case["source"]), case["data"], case["stage"]
    changes: dict[str, Any] = (
        {} if case.get("bf16") else FP32 | {"deepspeed__activation_checkpointing": None}
    )
    if stage == 3:  # nothing is kept gathered
        changes |= {"deepspeed__zero_optimization__stage3_param_persistence_threshold": 0}
    changes |= case.get("model", {})
    changes |= case.get("changes", {})
    config = make_config(
        f"zero{stage}", loss__info_nce=0.1, loss__unimodal=0.1, loss__vicreg=0.01, **changes
    )
    _, engine = zero_steps(config, data, processes, STEPS)
    assert saver_of(engine, run, processes).save({"step": STEPS, "best_step": STEPS})
    batch = reader_of(data, "test", processes).read(np.arange(ROWS))
    engine.eval()
    live = {}
    for subset in SUBSETS:
        present = torch.zeros_like(batch.present_BM)
        present[:, list(subset)] = True
        with torch.no_grad():
            logits = engine(batch.inputs, batch.lengths, present)["logits"]["digit"]
        live["+".join(MODALITIES[m] for m in subset)] = logits.float().numpy()
    if processes.is_rank_zero:
        fingerprint = read_manifest(Path(data)).fingerprint
        spec = RunSpec(
            grid="g",
            variant="base",
            config=config,
            resources=Resources(),
            data_fingerprint=fingerprint,
        )
        write_atomically(run.spec, spec.model_dump_json())
        write_json(run.attempt(1), {"attempt": 1, "data_dir": data})
        np.savez(run.path / "live.npz", **live)
    engine.destroy()
    return case["source"]
