"""Loading a checkpoint with another number of processes or another ZeRO stage."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from elastic_work import MADE_AT, MORE, OFFLOADED, case
from forked_ranks import run_phases

from furnace_hpc.engine.checkpoint import shards
from furnace_hpc.engine.checkpoint.shards import (
    AVERAGE,
    Index,
    OptimizerState,
    Piece,
    Shards,
    open_shards,
)
from furnace_hpc.runs.folder import RunFolder

pytestmark = pytest.mark.distributed

# As zero1_fp32.json, with buckets that are small for the tests' network too.
BUCKETS = {"contiguous_gradients": False, "reduce_bucket_size": 100}


BF16 = {"precision": "bf16"}
PHASES = [
    (
        2,
        [case("make", f"stage {stage} of 2", stage) for stage in (0, 1, 2, 3)]
        + [
            case("make", "bf16 stage 1 of 2", 1, **BF16),
            case("make", "offloaded stage 3 of 2", 3, zero=OFFLOADED),
            case("make", "buckets of 2", 1, zero=BUCKETS),
        ],
    ),
    (
        1,
        [
            case("resume", "stage 1 of 2", 1),
            case("resume", "stage 2 of 2", 3),
            case("resume", "stage 0 of 2", 0),
            case("make", "stage 2 of 1", 2),
        ],
    ),
    (
        4,
        [
            case("resume", "stage 2 of 2", 2),
            case("resume", "stage 3 of 2", 1),
            case("resume", "stage 1 of 2", 1, zero=BUCKETS),
            case("resume", "buckets of 2", 1, zero=BUCKETS),
            case("resume", "buckets of 2", 3),
            # DeepSpeed's default: all parameters of a small model stay gathered
            case("resume", "stage 3 of 2", 3, zero={}),
            case("resume", "bf16 stage 1 of 2", 1, **BF16),
            case("resume", "bf16 stage 1 of 2", 3, **BF16),
            case("resume", "offloaded stage 3 of 2", 2),
        ],
    ),
    (
        2,
        [
            case("resume", "stage 2 of 1", 2),
            case("resume", "buckets of 2", 1),
            case("resume", "stage 1 of 2", 3, zero=OFFLOADED),
            case("resume", "stage 3 of 2", 3, zero=OFFLOADED),
            case("resume", "offloaded stage 3 of 2", 3),
            case("begin", "fresh stage 3", 3, to_stage=2, zero={}),
        ],
    ),
]
# Two ranks save and one loads: few processes, each with few engines.
QUICK = [
    (2, [case("make", f"stage {stage} of 2", stage) for stage in (0, 1, 2)]),
    (
        1,
        [
            case("resume", "stage 2 of 2", 3),
            case("resume", "stage 0 of 2", 0),
            case("begin", "fresh stage 1", 1, to_stage=3),
            case("refuse", "stage 0 of 2", 1),
            case("refuse", "stage 2 of 2", 0),
            case("refuse", "stage 1 of 2", 2, fusion=True),
        ],
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elastic")


@pytest.fixture(scope="module")
def answers(folder: Path) -> list[Any]:
    return run_phases(folder, "elastic_work", QUICK)


@pytest.fixture(scope="module")
def all_answers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_phases(tmp_path_factory.mktemp("all"), "elastic_work", PHASES)


def test_one_rank_loads_the_state_of_two(answers: list[Any]):
    check_resumed(answers, 2)
    check_begun(answers, 1)


@pytest.mark.slow
def test_complete_state_is_loaded(all_answers: list[Any]):
    """By 1, 2 and 4 ranks, at every stage, in bf16 and offloaded."""
    check_resumed(all_answers, 17)
    check_begun(all_answers, 1)


def check_resumed(answers: list[Any], count: int) -> None:
    resumed = [answer for answer in answers if "differences" in answer]
    assert len(resumed) == count
    for answer in resumed:
        assert set(answer["differences"].values()) == {0.0}, answer
        assert answer["same_groups"], answer
        assert answer["client_state"] == {"step": MADE_AT}, answer
        assert answer["adam_steps"] == [MADE_AT + MORE], answer  # one count per step
        assert answer["counters"] == [MADE_AT + MORE, 8 * (MADE_AT + MORE)], answer
        # Another order of summation changes 1e-6 in fp32. In bf16 (8 bits) it changes the rounding
        # of gradients.
        assert answer["loss_difference"] <= (1e-3 if answer.get("precision") else 1e-6), answer


def check_begun(answers: list[Any], count: int) -> None:
    """A checkpoint of step 0 has no moments, and it can be loaded."""
    begun = [answer for answer in answers if "wanted" in answer]
    assert len(begun) == count
    for answer in begun:
        assert answer["got"] == pytest.approx(answer["wanted"], abs=1e-6)


def test_refused_stages_and_models(answers: list[Any]):
    refused = [answer for answer in answers if isinstance(answer, str)]
    patterns = [
        "ConfigError: checkpoint .* was made at ZeRO stage 0, and the run is now at stage 1. .*",
        "ConfigError: checkpoint .* was made at ZeRO stage 1, 2 or 3, and the run is now at stage "
        "0. .*",
        r"RuntimeError: checkpoint .* is of another model: \d+ parameters and buffers differ. .*",
    ]
    assert len(refused) == len(patterns)
    for answer, pattern in zip(refused, patterns, strict=True):
        assert re.fullmatch(pattern, answer), answer


def test_missing_rank_file(answers: list[Any], folder: Path):
    source = RunFolder(folder / "stage 2 of 2").checkpoint(MADE_AT) / "zero"
    assert open_shards(source).index.state.numbers["step"] == MADE_AT
    next(source.glob("*rank_1*optim_states.pt")).rename(folder / "moved")
    with pytest.raises(RuntimeError, match=r"optimizer files of ranks \[0\], expected those of 2"):
        open_shards(source)
    (folder / "moved").rename(source / "zero_pp_rank_1_mp_rank_00_optim_states.pt")


def test_reading_across_files_of_several_ranks():
    values = [torch.arange(0.0, 3), torch.arange(-1.0, 4), torch.empty(0), torch.arange(4.0, 9)]
    pieces = [Piece(0, 0, 0, 3), Piece(1, 0, 4, 1), Piece(2, 0, 0, 0), Piece(3, 0, 0, 5)]
    index = Index({"w": torch.Size([3, 3])}, {"w": pieces}, [], None)
    shards = Shards({}, index, lambda rank: [{"fp32": values[rank]}])
    for start in range(10):
        for numel in range(10 - start):
            assert shards.read("w", "fp32", start, numel).tolist() == list(
                range(start, start + numel)
            )
    assert shards.read("w", "fp32", 8, 4).tolist() == [8.0], (
        "values beyond the end are the reader's padding"
    )


def test_whole_weights_have_tied_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """DeepSpeed stores a tied parameter once, with the other name beside it. So it is averaged."""
    kept = {"fp32": torch.tensor([1.0, 2.0]), AVERAGE: torch.tensor([0.5, 1.5])}
    state = OptimizerState((AVERAGE,), {})
    index = Index({"first": torch.Size([2])}, {"first": [Piece(0, 0, 0, 2)]}, [], state)
    model = {"module": {}, "buffer_names": [], "shared_params": {"head.weight": "first"}}
    monkeypatch.setattr(shards, "has_shards", lambda folder: True)
    monkeypatch.setattr(
        shards, "open_shards", lambda folder: Shards(model, index, lambda rank: [kept])
    )
    for read, key in ((shards.whole_weights, "fp32"), (shards.whole_average, AVERAGE)):
        whole = {name: value.tolist() for name, value in read(tmp_path).items()}
        assert whole == dict.fromkeys(("first", "head.weight"), kept[key].tolist())


def test_average_of_tied_weights_at_stage_0(tmp_path: Path):
    """The model file has both names of one tensor, and the optimizer has it once."""
    tmp_path.chmod(0o700)
    values = torch.tensor([1.0, 2.0])
    groups = [{"params": [0], "names": ["first"]}]
    average = {0: {AVERAGE: torch.tensor([0.5, 1.5])}}
    content = {
        "module": {"first": values, "head.weight": values, "other": values.clone()},
        "optimizer": {"param_groups": groups, "state": average},
    }
    torch.save(content, tmp_path / "mp_rank_00_model_states.pt")
    found = {name: value.tolist() for name, value in shards.whole_average(tmp_path).items()}
    assert found == {"first": [0.5, 1.5], "head.weight": [0.5, 1.5]}
