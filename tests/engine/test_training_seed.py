"""Two packs give other initial weights, dropout and sample order. Rows of a pack share them."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from make import make_config

from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.config.seeds import pack_seed
from furnace_hpc.config.train_config import RunSpec, TrainConfig
from furnace_hpc.data.columns import open_columns
from furnace_hpc.engine import setup
from furnace_hpc.engine.context import RunContext
from furnace_hpc.engine.loop import train_batches
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.engine.ranks.stop import StopRequest
from furnace_hpc.engine.ranks.watchdog import Watchdog
from furnace_hpc.host import lifecycle
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import RunFolder, write_atomically
from furnace_hpc.runs.records.verdict import RankVerdict

ONE_RANK = Processes(0, 0, 1, torch.device("cpu"))


class Engine:
    """The part of DeepSpeed's engine that set-up and loader call."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.module = model

    def train_micro_batch_size_per_gpu(self) -> int:
        return 8


def started(folder: Path, data: Path, monkeypatch, **changes) -> tuple[RunContext, float]:
    """A run that is set up, and the first number that its dropout draws."""
    monkeypatch.setattr(setup, "build_engine", lambda model, config, processes: Engine(model))
    monkeypatch.setattr(setup, "_count_flops", lambda *_: None)  # it takes a second
    spec = RunSpec(
        grid="study",
        variant="base",
        config=make_config(**changes),
        resources=Resources(),
        data_fingerprint=read_manifest(data).fingerprint,
    )
    run = RunFolder(folder / spec.run_id)
    write_atomically(run.spec, spec.model_dump_json())
    lifecycle.begin(str(run.path), {"code_hash": code_hash(), "data_dir": str(data)})
    watchdog = Watchdog(60, RankVerdict(run, 1, 0))
    context = setup.set_up(run, 1, ONE_RANK, watchdog, StopRequest())
    return context, float(torch.rand(()))


def order(context: RunContext) -> list[list[int]]:
    """The samples of the first steps."""
    with train_batches(context.engine, context.reader, context.config, ONE_RANK) as batches:
        return [batch.rows.tolist() for step in range(3) for batch in batches.of_step(step)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_data) -> dict[str, tuple[RunContext, float]]:
    """Row base on packs a and b, and row full on pack a. All have seed 1."""
    wanted = {
        "base on a": {"pack_seed": pack_seed("a")},
        "full on a": {"pack_seed": pack_seed("a"), "loss.alpha": 0.5},
        "base on b": {"pack_seed": pack_seed("b")},
        "base alone": {},
    }
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        return {
            name: started(place / name, small_data, patch, seed=1, **changes)
            for name, changes in wanted.items()
        }


def test_packs_differ_in_weights_dropout_and_order(runs):
    first, row, other, alone = runs.values()
    for one, two in pairwise((first, other, alone)):
        weights = one[0].engine.module.state_dict(), two[0].engine.module.state_dict()
        drawn = [name for name, value in weights[0].items() if value.float().std() > 0]
        assert len(drawn) > 10
        assert not any(torch.equal(weights[0][name], weights[1][name]) for name in drawn)
        assert one[1] != two[1]
        assert order(one[0]) != order(two[0])
    for name, value in first[0].engine.module.state_dict().items():
        assert torch.equal(value, row[0].engine.module.state_dict()[name]), name
    assert first[1] == row[1]
    assert order(first[0]) == order(row[0])


def test_a_run_records_the_origin_of_its_pack(runs, small_data):
    context, _ = runs["base on a"]
    assert open_columns(small_data).manifest.dataset == "tridigits"
    assert context.data_origin.pool == "tridigits"


def test_frames_and_weighted_draws_use_the_seed(runs, monkeypatch):
    """Both are drawn by TrainBatches, from the seed that it gets."""
    seen = []
    monkeypatch.setattr(
        "furnace_hpc.engine.loop.TrainBatches", lambda *_, **given: seen.append(given)
    )
    for context, _ in runs.values():
        train_batches(context.engine, context.reader, context.config, ONE_RANK)
    configs: list[TrainConfig] = [context.config for context, _ in runs.values()]
    assert [given["seed"] for given in seen] == [config.training_seed for config in configs]
