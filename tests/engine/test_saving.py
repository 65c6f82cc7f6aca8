"""Saving in the background: contents of checkpoints, and failed saves."""

import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_ranks import run_phases

from furnace_hpc.engine.checkpoint import host_copy as host_copy_module
from furnace_hpc.engine.checkpoint import tensor_files
from furnace_hpc.engine.checkpoint.host_copy import HostCopy
from furnace_hpc.engine.checkpoint.tensor_files import write_files
from furnace_hpc.runs.records.checkpoint_files import describe

OFFLOADED = {
    f"offload_{what}": {"device": "cpu", "pin_memory": False} for what in ("optimizer", "param")
}
FULL = "OSError: [Errno 28] No space left on device"
WHOLE: list[dict[str, Any]] = [
    *({"do": "train_on", "source": f"stage {stage}", "stage": stage} for stage in (0, 1, 2, 3)),
    {"do": "train_on", "source": "bf16", "stage": 1, "precision": "bf16"},
    *({"do": "bad_gradient", "source": f"gradient {stage}", "stage": stage} for stage in (0, 2, 3)),
    {"do": "bad_gradient", "source": "gradient bf16", "stage": 1, "precision": "bf16"},
    *(
        {"do": "overlapped", "source": f"overlapped {stage}", "stage": stage, "then": "step"}
        for stage in (0, 2, 3)
    ),
    {
        "do": "overlapped",
        "source": "overlapped offloaded",
        "stage": 3,
        "zero": OFFLOADED,
        "then": "step",
    },
    {
        "do": "overlapped",
        "source": "overlapped bf16",
        "stage": 1,
        "precision": "bf16",
        "then": "step",
    },
]
CASES: list[dict[str, Any]] = [
    {"do": "overlapped", "source": "overlapped 1", "stage": 1, "then": "step", "ema": 0.9},
    {"do": "overlapped", "source": "overlapped wait", "stage": 1, "then": "wait"},
    {"do": "overlapped", "source": "overlapped save", "stage": 1, "then": "save"},
    {"do": "fail_copy", "source": "no memory", "stage": 1},
    {"do": "failed_pass", "source": "failed pass", "stage": 1},
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
    {"do": "bad_gradient", "source": "gradient 1", "stage": 1},
    {"do": "not_finite", "source": "not finite", "stage": 1},
    {"do": "flipped", "source": "flipped", "stage": 1},
    {"do": "stop_during_save", "source": "read back", "stage": 1, "held": "read_back"},
    {"do": "stop_during_save", "source": "deleted", "stage": 1, "held": "prune"},
    {"do": "outlived", "source": "outlived", "stage": 1},
    {"do": "replaced", "source": "replaced", "stage": 1},
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return answers_of(CASES, tmp_path_factory.mktemp("saving"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return answers_of(WHOLE, tmp_path_factory.mktemp("whole"))


def answers_of(cases: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    given = run_phases(folder, "saving_work", [(2, cases)])
    return {case["source"]: answer for case, answer in zip(cases, given, strict=True)}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("source", ["stage 0", "stage 1", "stage 2", "stage 3", "bf16"])
def test_saved_state_is_that_of_its_step(whole: dict[str, Any], source: str):
    """Steps that are trained during the save do not change it."""
    answer = whole[source]
    assert answer["equal"] == {"2": True, "4": True}
    assert [busy > 0 for busy in answer["busy"]] == [True, False] * 2
    assert answer["due"] == [True, False] * 2
    assert (answer["saved"], answer["steps"]) == (4, [2, 4])


@pytest.mark.distributed
def test_copy_during_the_next_step(answers: dict[str, Any]):
    """The update waits for the copy. Buffers and random states are those of before the step."""
    check_overlapped(answers["overlapped 1"])


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    "source", [f"overlapped {case}" for case in (0, 2, 3, "offloaded", "bf16")]
)
def test_copy_during_a_step_of_each_stage(whole: dict[str, Any], source: str):
    check_overlapped(whole[source])


def check_overlapped(answer: dict[str, Any]) -> None:
    before, after = answer["copied before an update"]
    assert (before, after) == (0, answer["copied"]), "forward and backward did not wait for it"
    assert answer["equal"]
    assert answer["share"] > 0.6, "most of the state is copied beside the step"
    assert (answer["parameters beside own code"], answer["steps"]) == (0, [2])


@pytest.mark.distributed
@pytest.mark.parametrize(("then", "steps"), [("wait", [2]), ("save", [2, 3])])
def test_copy_before_an_end_of_training(answers: dict[str, Any], then: str, steps: list[int]):
    """The end of a training waits for the copy, and so does a stop signal."""
    answer = answers[f"overlapped {then}"]
    assert (answer["equal"], answer["steps"]) == (True, steps)


@pytest.mark.distributed
def test_failed_copy_ends_all_ranks(answers: dict[str, Any]):
    """It is not tried again, because the state has changed since."""
    message = "the training state could not be copied to host memory (MemoryError: no memory)"
    assert answers["no memory"] == {
        "raised": [message] * 2,
        "tries": 1,
        "steps": [1],
        "leftovers": [],
    }


@pytest.mark.distributed
def test_error_while_the_state_is_copied(answers: dict[str, Any]):
    """The rank ends without the copy, and what it has written is never a checkpoint."""
    assert answers["failed pass"] == {"raised": "out of memory", "waited": False, "steps": []}


@pytest.mark.distributed
def test_failed_periodic_checkpoint(answers: dict[str, Any]):
    """If one rank cannot write, the checkpoint is dropped, and the next one is due soon."""
    assert answers["periodic"] == {"raised": "", "due": [4], "steps": [1], "leftovers": []}


@pytest.mark.distributed
def test_failed_best_checkpoint_is_retried(answers: dict[str, Any]):
    assert answers["best"] == {"raised": "", "due": [4], "steps": [1, 2], "leftovers": []}


@pytest.mark.distributed
def test_former_best_is_not_retried(answers: dict[str, Any]):
    answer = answers["bettered"]
    assert (answer["raised"], answer["leftovers"]) == ("", [])
    assert answer["steps"] in ([1, 3], [2, 3]), (
        "keep_checkpoints is 2, and the second try of step 2 may have succeeded"
    )


@pytest.mark.distributed
def test_stopped_run_does_not_retry(answers: dict[str, Any]):
    raised = (
        f"OSError: [Errno 5] the checkpoint of step 2, the best so far, could not be saved ({FULL})"
    )
    assert answers["stopped"] == {"raised": raised, "due": [], "steps": [1], "leftovers": []}


@pytest.mark.distributed
@pytest.mark.parametrize(("source", "steps"), [("read back", [1, 2, 3]), ("deleted", [2, 3])])
def test_stopped_run_skips_read_back_and_deletion(
    answers: dict[str, Any], source: str, steps: list[int]
):
    assert answers[source] == {"saved": True, "steps": steps, "newest": 3}


@pytest.mark.distributed
def test_nonfinite_loss_during_a_save(answers: dict[str, Any]):
    assert answers["not finite"] == [1]


@pytest.mark.distributed
def test_deletion_after_read_back(answers: dict[str, Any]):
    """Older checkpoints are deleted only if the newer one was read back unchanged."""
    assert answers["flipped"]["found"] == [
        [1, [1], 1, []],
        [2, [2], 2, []],
        [2, [2], 2, ["aside-step-3.1"]],
        [4, [4], 4, []],
    ]


@pytest.mark.distributed
def test_replaced_attempt_does_not_save(answers: dict[str, Any]):
    assert (
        answers["replaced"]
        == ["attempt 0 has been replaced by attempt 1: it writes nothing more"] * 2
    )


@pytest.mark.distributed
def test_replaced_attempt_does_not_delete(answers: dict[str, Any]):
    error = "attempt 0 has been replaced by attempt 1: it writes nothing more"
    assert answers["outlived"] == {"error": error, "steps": [1, 2]}


def test_host_copy():
    """The copy is deep, keeps shared storages shared, and reuses its buffers."""
    base = torch.arange(12.0)
    content = {
        "flat": base,
        "view": base[4:8].view(2, 2),
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "rest": [1, "x"],
    }
    content["parameter"] = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
    host_copy = HostCopy()
    copy = host_copy.copy(content)
    base.zero_()
    assert torch.equal(copy["flat"], torch.arange(12.0))
    assert torch.equal(copy["view"], torch.tensor([[4.0, 5], [6, 7]]))
    assert copy["view"].untyped_storage().data_ptr() == copy["flat"].untyped_storage().data_ptr()
    assert copy["bf16"].dtype == torch.bfloat16
    assert isinstance(copy["parameter"], torch.nn.Parameter)
    assert copy["rest"] == [1, "x"]
    where = {name: copy[name].data_ptr() for name in ("flat", "bf16", "parameter")}
    again = host_copy.copy(content)
    assert {name: again[name].data_ptr() for name in where} == where
    assert torch.equal(again["flat"], torch.zeros(12))


def test_host_copy_of_stable_storages():
    """`copy` leaves them, `finish` copies them, and a step between both changes the rest."""
    stable, rest = torch.arange(6.0), torch.arange(6.0)
    host_copy = HostCopy()
    copy = host_copy.copy([stable, rest], {stable.data_ptr()})
    rest.zero_()
    stable.add_(1)
    waiting = threading.Thread(target=host_copy.join)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    host_copy.finish()
    waiting.join(30)
    stable.zero_()
    host_copy.finish()
    assert copy[0].tolist() == [1, 2, 3, 4, 5, 6], "the second call copies nothing"
    assert copy[1].tolist() == [0, 1, 2, 3, 4, 5]


class StubCudart:
    """Records what is pinned."""

    def __init__(self) -> None:
        self.pinned: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.pinned[address] = size
        return flags

    def cudaHostUnregister(self, address: int) -> int:
        del self.pinned[address]
        return 0


def test_pinned_copies_are_exact_and_freed(monkeypatch: pytest.MonkeyPatch):
    """torch's own pinned memory would take 4 MiB for 2.5 MiB, and keep it."""
    cudart = StubCudart()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    large, small = torch.arange(2.5 * 2**18), torch.ones(5)
    host_copy = HostCopy()
    copy = host_copy.copy({"large": large, "small": small})
    assert torch.equal(copy["large"], large)
    assert list(cudart.pinned.values()) == [int(2.5 * 2**20)]
    assert host_copy.num_bytes == int(2.5 * 2**20) + 20
    host_copy.copy({"large": large[:5].clone(), "small": small})
    assert cudart.pinned == {}, "a copy without large tensors needs no pinned memory"
    host_copy.copy(large)
    host_copy.close()
    assert (cudart.pinned, host_copy.num_bytes) == ({}, 0)


def test_memory_that_cannot_be_pinned(monkeypatch: pytest.MonkeyPatch, capsys):
    """One line says so. The copy is made in ordinary memory, and nothing is unpinned."""
    calls: list[str] = []

    class Full(StubCudart):
        def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
            calls.append("register")
            return 2  # cudaErrorMemoryAllocation

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", Full)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(host_copy_module, "_failures", [])
    monkeypatch.setattr(host_copy_module, "clear_last_error", lambda: calls.append("clear"))
    host_copy = HostCopy()
    for size in (3, 4):
        large = [torch.arange(size * 2.0**18), torch.arange(size * 2.0**18 + 1)]
        copy = host_copy.copy(large)
        assert all(map(torch.equal, copy, large))
    host_copy.close()
    assert calls == ["register", "clear"]
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("WARNING: checkpoints: CUDA cannot pin 3 MiB of host memory (error 2)")


def test_size_and_hash_of_written_files(tmp_path: Path):
    digests = write_files({"zero/a.pt": {"x": torch.randn(100_000)}, "b.pt": [1, 2]}, tmp_path)
    assert digests == {name: describe(tmp_path / name) for name in ("zero/a.pt", "b.pt")}
    assert torch.load(tmp_path / "b.pt") == [1, 2]


def test_files_have_no_crc32(tmp_path: Path):
    write_files({"a.pt": {"x": torch.randn(100)}}, tmp_path)
    torch.save({"x": torch.randn(100)}, tmp_path / "b.pt")  # the setting of others is left alone
    sums = {
        name: {file.CRC for file in zipfile.ZipFile(tmp_path / name).infolist()}
        for name in ("a.pt", "b.pt")
    }
    assert sums["a.pt"] == {0}
    assert 0 not in sums["b.pt"]


def test_the_disk_begins_while_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun = []
    monkeypatch.setattr(tensor_files, "WRITE_BACK_BYTES", 100_000)
    monkeypatch.setattr(tensor_files, "PIECE_BYTES", 40_000)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *given: begun.append(given))
    content = torch.arange(200_000)
    write_files({"a.pt": content}, tmp_path)
    assert len(begun) > 10
    first = 0
    for start, num_bytes, advice in begun:  # one part after the other, none twice
        assert (start, advice) == (first, os.POSIX_FADV_DONTNEED)
        assert num_bytes >= 100_000
        first = start + num_bytes
    assert (tmp_path / "a.pt").stat().st_size - first < 100_000
    assert torch.equal(torch.load(tmp_path / "a.pt"), content)


@pytest.mark.distributed
def test_nonfinite_gradient(answers: dict[str, Any]):
    check_gradients(answers["gradient 1"])


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("source", ["gradient 0", "gradient 2", "gradient 3", "gradient bf16"])
def test_nonfinite_gradient_of_each_stage(whole: dict[str, Any], source: str):
    check_gradients(whole[source])


def check_gradients(answer: list[str]) -> None:
    good, bad = answer
    assert good == ""
    assert bad.startswith(("the gradient is not finite", "a parameter is not finite"))
