"""Runs with cached features: the numbers of computed ones, at all stages, through resume, export.

`test_feature_files.py` has the files.
"""

from pathlib import Path
from typing import Any

import pytest
from export_study import exported
from features_work import case
from forked_ranks import run_phases
from make import make_config
from rank_work import FP32

from furnace_hpc.checks.small_pack import cut_pack
from furnace_hpc.inference.predictor import Predictor

pytestmark = pytest.mark.distributed
FROZEN: dict[str, Any] = {"freeze": "all"}
CACHED: dict[str, Any] = FROZEN | {"cache_features": True}
STEPS, SAVED_AT = 4, 2


def config_of(section: dict[str, Any], stage: int = 1, bf16: bool = False, **changes: Any) -> Any:
    encoders = {f"model__{name}": section for name in ("text", "image", "audio")}
    small = {"model__image_encoder": "vit", "model__image_layers": 1, "model__width": 16}
    small |= {"model__modality_dropout": 0.3, "augment__mixup": 0.4, "micro_batch_size": 2}
    often = {"steps": STEPS, "evaluation__every": SAVED_AT, "checkpoint_every": SAVED_AT}
    precision = {} if bf16 else FP32 | {"deepspeed__activation_checkpointing": None}
    return make_config(
        f"zero{stage}", **precision, **small, **often, **encoders, global_batch_size=4, **changes
    )


@pytest.fixture(scope="module")
def answers(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run -> what it found. Two ranks share the work of the first, at ZeRO stage 3."""
    folder = tmp_path_factory.mktemp("features")
    data = folder / "data" / "tridigits"
    cut_pack(small_data, data)
    cached, bf16 = config_of(CACHED), config_of(CACHED, bf16=True)
    two = [
        case("two", data, config_of(CACHED, stage=3)),
        case("resumed", data, config_of(CACHED, stage=3), "resume", of="two", step=SAVED_AT),
    ]
    one = [
        case("one", data, config_of(CACHED, stage=3), "resume", of="two", step=SAVED_AT),
        case("read", data, cached),
        case("computed", data, cached, features="compute"),
        case("frozen", data, config_of(FROZEN)),
        case("bf16", data, bf16),
        case("bf16 computed", data, bf16, features="compute"),
    ]
    found = run_phases(folder, "features_work", [(2, two), (1, one)], per_case_s=60)
    logs = {"log": (folder / "phase-1" / "rank-0.log").read_text(), "folder": folder}
    return logs | {answer["name"]: answer for answer in found}


def sha256(answer: dict[str, Any]) -> str:
    return answer["result"]["parameters_sha256"]


@pytest.mark.parametrize("precision", ["", "bf16"])
def test_cached_and_computed_features_train_alike(answers: dict[str, Any], precision: str):
    """Bit for bit: parameters and all metrics, with absent modalities and mixup."""
    stored, computed = answers[precision or "read"], answers[f"{precision} computed".strip()]
    assert sha256(stored) == sha256(computed)
    assert stored["result"]["metrics"] == computed["result"]["metrics"]
    assert stored["read"] == computed["read"] == []  # no raw input


def test_frozen_encoders_differ_by_rounding(answers: dict[str, Any]):
    """Without the key, an encoder computes whole batches, which may round otherwise."""
    frozen, cached = answers["frozen"], answers["read"]
    assert frozen["read"] == ["audio", "image", "text"]
    loss = frozen["result"]["metrics"]["test/digit/loss"]
    assert cached["result"]["metrics"]["test/digit/loss"] == pytest.approx(loss, rel=1e-4)
    for key in ("num_parameters", "trainable_parameters"):
        assert cached["result"][key] == frozen["result"][key]
    assert sum(cached["flops"]) < 0.7 * sum(frozen["flops"])  # those of the encoders are left out


def test_features_are_read_after_a_resume(answers: dict[str, Any]):
    """Also by another number of ranks, which computes nothing again."""
    assert sha256(answers["resumed"]) == sha256(answers["two"])
    loss = answers["two"]["result"]["metrics"]["test/digit/loss"]
    assert answers["one"]["result"]["metrics"]["test/digit/loss"] == pytest.approx(loss, rel=1e-3)
    before, _, _ = answers["log"].partition("resumed after step")
    assert before.count("read from") == 3
    assert "computed in" not in before


def test_an_exported_model_computes_its_features(answers: dict[str, Any], tmp_path: Path):
    run = answers["folder"] / "runs" / "grid" / "read"
    _, lines = exported(run, tmp_path / "model", data_dir=answers["folder"] / "data")
    assert any("with the run's own for 12 test samples" in line for line in lines), lines
    answer = Predictor.load(tmp_path / "model", "cpu").predict(text="it is even")
    assert len(answer.tasks["digit"].probabilities) == 10
