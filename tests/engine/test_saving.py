"""Checkpoints that are written while training goes on: what they hold, and what becomes of those that cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from forked_ranks import run_phases

from furnace_hpc.engine.checkpoint.host_copy import HostCopy
from furnace_hpc.engine.checkpoint.tensor_files import write_files
from furnace_hpc.runs.records.checkpoint_files import describe

FULL = "OSError: [Errno 28] No space left on device"
CASES: list[dict[str, Any]] = [
    *({"do": "train_on", "source": f"stage {stage}", "stage": stage} for stage in (0, 1, 2, 3)),
    {"do": "train_on", "source": "bf16", "stage": 1, "precision": "bf16"},
    {"do": "fail", "source": "periodic", "stage": 1, "failures": 1, "is_best": False},
    {"do": "fail", "source": "best", "stage": 1, "failures": 2, "is_best": True},
    {
        "do": "fail",
        "source": "bettered",
        "stage": 1,
        "failures": 1,
        "is_best": True,
        "bettered": True,
    },
    {
        "do": "fail",
        "source": "stopped",
        "stage": 1,
        "failures": 100,
        "is_best": True,
        "stopped": True,
    },
    *(
        {"do": "bad_gradient", "source": f"gradient {stage}", "stage": stage}
        for stage in (0, 1, 2, 3)
    ),
    {"do": "bad_gradient", "source": "gradient bf16", "stage": 1, "precision": "bf16"},
    {"do": "not_finite", "source": "not finite", "stage": 1},
    {"do": "flipped", "source": "flipped", "stage": 1},
    {"do": "told_to_stop", "source": "read back", "stage": 1, "held": "read_back"},
    {"do": "told_to_stop", "source": "deleted", "stage": 1, "held": "prune"},
    {"do": "outlived", "source": "outlived", "stage": 1},
    {"do": "replaced", "source": "replaced", "stage": 1},
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    given = run_phases(tmp_path_factory.mktemp("saving"), "saving_work", [(2, CASES)])
    return {case["source"]: answer for case, answer in zip(CASES, given, strict=True)}


@pytest.mark.distributed
@pytest.mark.parametrize("source", ["stage 0", "stage 1", "stage 2", "stage 3", "bf16"])
def test_what_is_saved_is_the_state_at_that_step_though_training_went_on(
    answers: dict[str, Any], source: str
):
    answer = answers[source]
    assert answer["equal"] == {"2": True, "4": True}
    assert [busy > 0 for busy in answer["busy"]] == [True, False] * 2
    assert answer["due"] == [True, False] * 2
    assert (answer["saved"], answer["steps"]) == (4, [2, 4])


@pytest.mark.distributed
def test_a_periodic_one_that_one_rank_cannot_write_is_given_up_and_soon_due_again(
    answers: dict[str, Any],
):
    assert answers["periodic"] == {"raised": "", "due": [4], "steps": [1], "leftovers": []}


@pytest.mark.distributed
def test_the_best_is_tried_again_and_saved(answers: dict[str, Any]):
    assert answers["best"] == {"raised": "", "due": [4], "steps": [1, 2], "leftovers": []}


@pytest.mark.distributed
def test_one_that_is_not_the_best_any_more_is_not_waited_for(answers: dict[str, Any]):
    answer = answers["bettered"]
    assert (answer["raised"], answer["leftovers"]) == ("", [])
    assert answer["steps"] in ([1, 3], [2, 3]), (
        "keep_checkpoints is 2, and step 2 may have got its second try"
    )


@pytest.mark.distributed
def test_a_stopped_run_does_not_spend_its_last_seconds_on_tries(answers: dict[str, Any]):
    raised = (
        f"OSError: [Errno 5] the checkpoint of step 2, the best so far, could not be saved ({FULL})"
    )
    assert answers["stopped"] == {"raised": raised, "due": [], "steps": [1], "leftovers": []}


@pytest.mark.distributed
@pytest.mark.parametrize(("source", "steps"), [("read back", [1, 2, 3]), ("deleted", [2, 3])])
def test_a_stopped_run_waits_for_no_reading_and_no_deleting(
    answers: dict[str, Any], source: str, steps: list[int]
):
    assert answers[source] == {"saved": True, "steps": steps, "newest": 3}


@pytest.mark.distributed
def test_a_loss_that_is_not_finite_does_not_cost_the_checkpoint_on_its_way(answers: dict[str, Any]):
    assert answers["not finite"] == [1]


@pytest.mark.distributed
def test_older_ones_are_deleted_when_a_newer_one_has_come_back_from_the_disk_as_it_was_written(
    answers: dict[str, Any],
):
    assert answers["flipped"]["found"] == [
        [1, [1], 1, []],
        [2, [2], 2, []],
        [2, [2], 2, ["aside-step-3.1"]],
        [4, [4], 4, []],
    ]


@pytest.mark.distributed
def test_a_replaced_attempt_renames_nothing_and_begins_nothing(answers: dict[str, Any]):
    assert (
        answers["replaced"]
        == ["attempt 0 has been replaced by attempt 1: it writes nothing more"] * 2
    )


@pytest.mark.distributed
def test_a_replaced_attempt_deletes_nothing(answers: dict[str, Any]):
    said = "attempt 0 has been replaced by attempt 1: it writes nothing more"
    assert answers["outlived"] == {"said": said, "steps": [1, 2]}


def test_a_copy_is_deep_shares_what_was_shared_and_uses_its_memory_again():
    base = torch.arange(12.0)
    content = {
        "flat": base,
        "view": base[4:8].view(2, 2),
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "rest": [1, "x"],
    }
    content["parameter"] = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
    host_copy = HostCopy()
    copy = host_copy.of(content)
    base.zero_()
    assert torch.equal(copy["flat"], torch.arange(12.0))
    assert torch.equal(copy["view"], torch.tensor([[4.0, 5], [6, 7]]))
    assert copy["view"].untyped_storage().data_ptr() == copy["flat"].untyped_storage().data_ptr()
    assert copy["bf16"].dtype == torch.bfloat16
    assert isinstance(copy["parameter"], torch.nn.Parameter)
    assert copy["rest"] == [1, "x"]
    where = {name: copy[name].data_ptr() for name in ("flat", "bf16", "parameter")}
    again = host_copy.of(content)
    assert {name: again[name].data_ptr() for name in where} == where
    assert torch.equal(again["flat"], torch.zeros(12))


def test_size_and_hash_told_of_a_file_are_those_on_the_disk(tmp_path: Path):
    described = write_files({"zero/a.pt": {"x": torch.randn(100_000)}, "b.pt": [1, 2]}, tmp_path)
    assert described == {name: describe(tmp_path / name) for name in ("zero/a.pt", "b.pt")}
    assert torch.load(tmp_path / "b.pt") == [1, 2]


@pytest.mark.distributed
@pytest.mark.parametrize(
    "source", ["gradient 0", "gradient 1", "gradient 2", "gradient 3", "gradient bf16"]
)
def test_a_gradient_that_is_not_finite_ends_the_run_before_it_is_saved(
    answers: dict[str, Any], source: str
):
    good, bad = answers[source]
    assert good == ""
    assert bad.startswith(("the gradient is not finite", "a parameter is not finite"))
