"""Run folders with a checkpoint of stage 0, made without DeepSpeed, and their exported models."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from made_once import made_once
from make import make_config
from raw_sets import write_mmimdb, write_vocab
from tables_study import result_of

from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.data.decode.images import ImageKnobs
from furnace_hpc.data.packing.pack import pack_files
from furnace_hpc.data.packing.sample import PackPlan
from furnace_hpc.data.sets.mmimdb import MovieKnobs, plan_raw
from furnace_hpc.engine.deepspeed_engine import parameters_sha256
from furnace_hpc.inference.export import export
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.network import FusionModel
from furnace_hpc.runs.folder import RunFolder, write_atomically, write_json
from furnace_hpc.runs.records.checkpoint_files import complete, describe
from furnace_hpc.runs.records.metrics import MetricsFile
from furnace_hpc.runs.records.result import write_result

SHARD = "zero/mp_rank_00_model_states.pt"
STEP = 4
GENRES_TASK = [{"name": "genres", "kind": "multi_label"}]
SMALL = {"model__width": 16, "model__num_heads": 2, "model__feedforward": 24}


def write_run(
    place: Path,
    data: Path,
    scores: dict[str, float] | None = None,
    done: bool = True,
    **changes: Any,
) -> RunFolder:
    """A run of random weights with a best checkpoint of step 4. `scores` are of its evaluation."""
    manifest = read_manifest(data)
    config = make_config("zero0", **SMALL | {"steps": STEP} | changes)
    spec = RunSpec(
        grid="g",
        variant="base",
        config=config,
        resources=Resources(),
        data_fingerprint=manifest.fingerprint,
    )
    run = RunFolder(place / spec.run_id)
    write_atomically(run.spec, spec.model_dump_json())
    write_json(run.attempt(1), {"attempt": 1, "data_dir": str(data)})
    torch.manual_seed(0)
    num_classes = {task.name: len(manifest.labels[task.name].classes) for task in config.tasks}
    shapes, ordinal = InputShapes.of(manifest), config.ordinal_tasks
    network = FusionModel(config.model, shapes, num_classes, config.loss, ordinal)
    save(run, STEP, {"module": network.state_dict()})
    metrics = MetricsFile(run.metrics(1))
    metrics.write({"step": STEP, "kind": "val", **(scores or {})})
    metrics.close()
    if done:
        sha256 = parameters_sha256(_parameters(network))
        more = {
            "accuracy": 0.5,
            "metrics": scores or {},
            "steps": config.steps,
            "selected_step": STEP,
            "parameters_sha256": sha256,
        }
        write_result(run, result_of(spec, **more))
    return run


def save(run: RunFolder, step: int, content: Any) -> None:
    """A checkpoint as the saver leaves it."""
    aside = run.checkpoints / f"step-{step}.tmp-x"
    (aside / SHARD).parent.mkdir(parents=True)
    torch.save(content, aside / SHARD)
    facts = {"step": step, "world_size": 1, "zero_stage": 0, "state": {"best_step": step}}
    complete(
        aside,
        run.checkpoint(step),
        facts | {"code_hash": "c0de", "versions": {}},
        {SHARD: describe(aside / SHARD)},
    )


def _parameters(network: FusionModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def exported(place: Path, data: Path, tokenizer: str | None = None, **changes: Any) -> Path:
    """The folder of a model, exported from a run of random weights."""
    run = write_run(place / "runs", data, **changes)
    export(run.path, place / "model", None, None, tokenizer, False, False, lambda words: None)
    return place / "model"


def packed(plan: PackPlan, out: Path) -> Path:
    """The folder that a plan is packed into."""
    pack_files(plan, out, lambda *_: None, workers=1, max_refused=0.5, force=False)
    return out


@pytest.fixture(name="model", scope="session")
def tridigits_model(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    """A model of the small TriDigits: digit and parity."""
    tasks = [{"name": "digit"}, {"name": "parity"}]
    make = partial(exported, data=small_data, tasks=tasks)
    return made_once(tmp_path_factory, "tridigits-model", make) / "model"


@pytest.fixture(name="samples", scope="session")
def tridigits_samples(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    """samples.jsonl of three test samples, their files beside it."""
    from furnace_hpc.data.sets.tridigits.sample_files import write_samples

    make = partial(write_samples, small_data)
    return made_once(tmp_path_factory, "tridigits-samples", make) / "samples.jsonl"


@pytest.fixture(name="movies", scope="session")
def packed_movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw folder, its pack beside it, and a model of it."""
    return made_once(tmp_path_factory, "movies", make_movies)


def make_movies(place: Path) -> None:
    vocab = str(write_vocab(place / "vocab"))
    plan = plan_raw(
        write_mmimdb(place / "raw"), MovieKnobs(ImageKnobs(size=32), vocab, 24, "longest")
    )
    modalities, scores = ["text", "image"], {"val/genres/map": 0.5, "val/genres/threshold": 0.47}
    data = packed(plan, place / "data")
    exported(
        place, data, tokenizer=vocab, tasks=GENRES_TASK, model__modalities=modalities, scores=scores
    )
