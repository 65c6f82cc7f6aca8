"""Features of frozen encoders: stored once, read in training, with the same numbers."""

from pathlib import Path
from typing import Any

import pytest
from features_work import case
from forked_ranks import run_phases
from make import make_config
from rank_work import FP32

pytestmark = pytest.mark.distributed
FROZEN: dict[str, Any] = {"freeze": "all"}
CACHED: dict[str, Any] = FROZEN | {"cache_features": True}


def config_of(section: dict[str, Any], stage: int = 1, **changes: Any) -> Any:
    encoders = {f"model__{name}": section for name in ("text", "image", "audio")}
    small = {"model__image_encoder": "vit", "model__image_layers": 1, "steps": 3}
    often = {"evaluation__every": 2, "checkpoint_every": 2}
    precision = FP32 | {"deepspeed__activation_checkpointing": None}
    return make_config(f"zero{stage}", **precision, **small, **often, **encoders, **changes)


def test_cached_and_computed_features_train_alike(small_data: Path, tmp_path: Path):
    cached = config_of(CACHED)
    cases = [
        case("stored", small_data, cached),
        case("read", small_data, cached),
        case("computed", small_data, cached, features="compute"),
        case("frozen", small_data, config_of(FROZEN)),
    ]
    stored, read, computed, frozen = run_phases(tmp_path, "features_work", [(1, cases)])
    sha256 = stored["result"]["parameters_sha256"]
    print([a["result"]["parameters_sha256"][:8] for a in (stored, read, computed, frozen)])
    assert read["result"]["parameters_sha256"] == sha256
    assert computed["result"]["parameters_sha256"] == sha256
    assert read["result"]["metrics"] == computed["result"]["metrics"]
