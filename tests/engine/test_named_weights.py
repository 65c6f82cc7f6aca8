"""A rank refuses weights that have changed since the submission."""

import json
from pathlib import Path

import pytest
import torch
from make import make_config

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.sections.initial_weights import InitialWeights
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.engine.ranks.watchdog import Watchdog
from furnace_hpc.engine.setup import read_weights
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import Attempt
from furnace_hpc.runs.records.weights import NamedWeights


class Silent(Watchdog):
    """A watchdog that watches nothing."""

    def __init__(self) -> None:
        """Start no thread."""

    def heartbeat(self, activity: str) -> None:
        """Accept what the rank does."""


def read(model: Path, submitted: dict[str, str]) -> NamedWeights:
    config = make_config().model_copy(update={"init_from": (InitialWeights(model=str(model)),)})
    return read_of(config, model.parent, submitted)


def read_of(config: TrainConfig, place: Path, submitted: dict[str, str]) -> NamedWeights:
    record = Attempt(attempt=1, weights_fingerprints=submitted)
    processes = Processes(0, 0, 1, torch.device("cpu"))
    folder = RunFolder(place / "study" / "run-s0-01234567")
    return read_weights(config, folder, record, processes, Silent())


def test_a_rank_refuses_changed_weights(tmp_path):
    def export(digest: str) -> None:
        content = {"files": {"model.safetensors": [12, digest]}}
        (tmp_path / "config.json").write_text(json.dumps(content))

    export("a" * 32)
    found = dict(read(tmp_path, {}).fingerprints)
    assert list(found) == ["init_from.0"]
    assert read(tmp_path, found).fingerprints == found
    export("b" * 32)
    with pytest.raises(ConfigError) as error:
        read(tmp_path, found)
    assert str(error.value) == (
        f"the weights of model {tmp_path} have changed since run run-s0-01234567 was submitted. "
        "Restore them, or submit again"
    )


def test_jobs_may_have_another_hub_cache(tmp_path, monkeypatch):
    """Then another submission from the same shell would be refused too."""
    model = tmp_path / "models--tiny--bert"
    snapshot = model / "snapshots" / ("5" * 40)
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("5" * 40)
    (snapshot / "config.json").write_text('{"model_type": "bert"}')
    (snapshot / "model.safetensors").write_text("values")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = make_config()
    named = config.model.model_copy(update={"text_weights": "tiny/bert"})
    config = config.model_copy(update={"model": named})
    with pytest.raises(ConfigError, match="submit with the same HF_HOME"):
        read_of(config, tmp_path, {"model.text_weights": "0" * 16})
