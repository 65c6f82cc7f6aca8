"""`micro_batch_size: auto`, and half of it after a run is out of memory.

No GPU is needed: the network raises CUDA's error for batches that count as too large.
"""

import json
from pathlib import Path

import pytest
import torch
from killed_run import new_run
from make import make_config
from pydantic import ValidationError

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.engine import micro_batch
from furnace_hpc.engine.loop import train
from furnace_hpc.engine.micro_batch import candidates, half, longest_rows, resolved
from furnace_hpc.engine.ranks.distributed import Processes, RankInfo
from furnace_hpc.host import lifecycle
from furnace_hpc.model.network import FusionModel
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.metrics import read_metrics
from furnace_hpc.runs.records.verdict import RankVerdict

ONE = Processes(0, 0, 1, torch.device("cpu"))
FP32 = {"deepspeed__bf16__enabled": False, "deepspeed__data_types": None}


@pytest.mark.parametrize(
    ("total", "world_size", "sizes"),
    [
        (64, 1, [64, 32, 16, 8, 4, 2, 1]),
        (64, 8, [8, 4, 2, 1]),
        (48, 2, [24, 8, 4, 2, 1]),
        (12, 4, [3, 1]),
        (5, 5, [1]),
    ],
)
def test_sizes_that_auto_tries(total, world_size, sizes):
    """All divide the global batch among the ranks."""
    config = make_config(global_batch_size=total, micro_batch_size="auto")
    assert candidates(config, world_size) == sizes
    assert all(total % (size * world_size) == 0 for size in sizes)


def test_a_batch_that_does_not_divide():
    with pytest.raises(ConfigError, match="global_batch_size 10 does not divide among 4"):
        candidates(make_config(global_batch_size=10, micro_batch_size="auto"), 4)


def test_halves():
    config = make_config(global_batch_size=64)
    assert [half(config, size) for size in (64, 6, 2, 3, 1)] == [32, 3, 1, None, None]
    assert half(make_config(loss__info_nce=0.1), 8) is None, "the loss would change"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("many", "wanted a number, or auto"),
        (True, "wanted a number, or auto"),
        (0, "Use at least 1, or auto"),
        ("8", "Write 8, without quotes, or auto"),
    ],
)
def test_refused_values(value, words):
    with pytest.raises(ValidationError) as caught:
        make_config(micro_batch_size=value)
    [error] = caught.value.errors()
    assert words in error["msg"]


def test_auto_is_refused_where_losses_compare_samples():
    with pytest.raises(ValidationError, match="loss.info_nce depends on the micro-batch"):
        make_config(micro_batch_size="auto", loss__info_nce=0.1)


def test_the_choice_is_made_once(tmp_path):
    """A resumed run keeps it, also with another number of ranks."""
    config = make_config(global_batch_size=32, micro_batch_size="auto")
    tried = []

    def fits(trial) -> bool:
        tried.append(trial.micro_batch_size)
        return trial.micro_batch_size <= 8

    folder = RunFolder(tmp_path)
    assert resolved(config, folder, 1, ONE, fits).micro_batch_size == 8
    assert tried == [32, 16, 8]
    assert json.loads(folder.micro_batch.read_text()) == {"micro_batch_size": 8, "attempt": 1}
    assert resolved(config, folder, 2, ONE, fits).micro_batch_size == 8
    assert tried == [32, 16, 8]
    eight = Processes(0, 0, 8, torch.device("cpu"))
    eight.__dict__["broadcast"] = lambda value: value
    assert resolved(config, folder, 3, eight, fits).micro_batch_size == 4
    with pytest.raises(torch.OutOfMemoryError, match="not even 1 sample per process"):
        resolved(config, RunFolder(tmp_path / "other"), 1, ONE, lambda trial: False)


def test_a_try_has_the_longest_texts(small_data):
    from rank_work import reader_of

    reader = reader_of(str(small_data), "train", ONE)
    lengths = reader.column("text_length")
    assert sorted(lengths[longest_rows(reader, 5)]) == sorted(lengths)[-5:]
    assert len(longest_rows(reader, 1000)) == 1000


# Whole attempts in this process


@pytest.fixture
def small_gpu(monkeypatch):
    """Batches of more than `most` samples are out of memory in training. Sizes are tried."""
    limits = {"most": 4}
    forward = FusionModel.forward

    def limited(self, inputs, lengths, present_BM, subsets=()):
        if self.training and len(present_BM) > limits["most"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, inputs, lengths, present_BM, subsets)

    monkeypatch.setattr(FusionModel, "forward", limited)
    monkeypatch.setattr(micro_batch, "probes_memory", lambda device: True)
    return limits


def run(place: Path, data: Path, size: object) -> Path:
    """The folder of a new run with this micro-batch size."""
    folder = new_run(place, data, stage=1, size=1, steps=4)
    spec = json.loads((folder / "spec.json").read_text())
    spec["config"] |= {"micro_batch_size": size, "checkpoint_every": 2}
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def attempt(folder: Path, data: Path, **facts) -> str:
    """Train one attempt in this process. Return the host's decision."""
    given = {"code_hash": code_hash(), "data_dir": str(data), "world_size": 1, **facts}
    number = lifecycle.begin(str(folder), given)
    code = 1
    try:
        with RankVerdict(RunFolder(folder), number, 0) as verdict:
            code = train(RunFolder(folder), number, RankInfo(0, 0, 1, None), verdict)
    except torch.OutOfMemoryError:
        pass
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return lifecycle.decide(str(folder), number, code)


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_auto_gives_the_bits_of_its_number(small_data, tmp_path, small_gpu):
    """Tries with other engines leave no trace in the training."""
    auto, fixed = run(tmp_path / "a", small_data, "auto"), run(tmp_path / "b", small_data, 4)
    assert attempt(auto, small_data) == attempt(fixed, small_data) == "done"
    assert json.loads((auto / "micro_batch.json").read_text())["micro_batch_size"] == 4
    assert result_of(auto)["parameters_sha256"] == result_of(fixed)["parameters_sha256"]
    assert result_of(auto)["micro_batch_size"] == 4
    assert not (fixed / "micro_batch.json").exists()


@pytest.mark.slow
def test_out_of_memory_halves_once(small_data, tmp_path, small_gpu):
    """The second attempt has half of the micro-batch, and the bits of a run that began so."""
    folder, fixed = run(tmp_path / "a", small_data, 8), run(tmp_path / "b", small_data, 4)
    assert attempt(folder, small_data) == "requeue"
    record = lifecycle.read_attempt(str(folder), 1)
    assert (record["reason"], record["next_overrides"]) == ("oom_halved", {"micro_batch_size": 4})
    assert record["error"].startswith("torch.OutOfMemoryError: CUDA out of memory")
    assert "GiB resident of" in record["error"], "memory of the process"
    assert record["error"].endswith("retried with micro_batch_size 4")
    assert attempt(folder, small_data) == "done"
    assert lifecycle.read_attempt(str(folder), 2)["overrides"] == {"micro_batch_size": 4}
    assert attempt(fixed, small_data) == "done"
    assert result_of(folder)["parameters_sha256"] == result_of(fixed)["parameters_sha256"]
    trained = [line for line in read_metrics(RunFolder(folder)) if line["kind"] == "train"]
    assert all(line["model_tflop_s"] > 0 and line["data_wait_s"] >= 0 for line in trained)
    assert result_of(folder)["model_tflop_s"] > 0


@pytest.mark.slow
def test_a_second_out_of_memory_is_final(small_data, tmp_path, small_gpu):
    small_gpu["most"] = 2
    folder = run(tmp_path / "a", small_data, 8)
    assert [attempt(folder, small_data) for _ in range(2)] == ["requeue", "fail"]
    assert lifecycle.read_attempt(str(folder), 2)["reason"] == "oom"
