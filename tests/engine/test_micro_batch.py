"""`micro_batch_size: auto`, and half of it after a run is out of memory.

No GPU is needed: the network raises CUDA's error for batches that count as too large.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from killed_run import new_run
from make import make_config
from pydantic import ValidationError

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.engine import setup
from furnace_hpc.engine.micro_batch import candidates, half, longest_rows, resolved
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.host import lifecycle
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.metrics import read_metrics

ONE = Processes(0, 0, 1, torch.device("cpu"))


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


def test_a_try_places_the_network_as_a_run_does(tmp_path, monkeypatch):
    """At stage 3 a network that is larger than a GPU must be divided before."""
    calls = []
    monkeypatch.setattr(setup, "build_model", lambda *_: "network")
    monkeypatch.setattr(setup, "_open_readers", lambda *_: {"train": None})
    monkeypatch.setattr(setup, "place", lambda *given: calls.append(("place", *given)))
    monkeypatch.setattr(setup, "build_engine", lambda *given: calls.append(("engine", *given)))
    monkeypatch.setattr(setup, "probe", lambda make_engine, *_: lambda c: make_engine(c) is None)
    config = make_config("zero3", global_batch_size=32, micro_batch_size="auto")
    columns, watchdog = SimpleNamespace(manifest=None), SimpleNamespace(heartbeat=print)
    found = setup._choose_micro_batch(config, columns, RunFolder(tmp_path), 1, ONE, watchdog)
    assert found.micro_batch_size == 32
    assert calls == [("place", "network", found, ONE), ("engine", "network", found, ONE)]


def test_a_try_has_the_longest_texts(small_data):
    from rank_work import reader_of

    reader = reader_of(str(small_data), "train", ONE)
    lengths = reader.column("text_length")
    assert sorted(lengths[longest_rows(reader, 5)]) == sorted(lengths)[-5:]
    assert len(longest_rows(reader, 1000)) == 1000


# Whole attempts, each in a process of its own


WORK = str(Path(__file__).parents[1] / "support" / "memory_work.py")


def run(place: Path, data: Path, size: object) -> Path:
    """The folder of a new run with this micro-batch size."""
    folder = new_run(place, data, stage=1, size=1, steps=4)
    spec = json.loads((folder / "spec.json").read_text())
    spec["config"] |= {"micro_batch_size": size, "checkpoint_every": 2}
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def attempt(folder: Path, data_root: Path, most: int = 4) -> int:
    """Train one attempt in which batches of more than `most` samples do not fit."""
    command = [sys.executable, WORK, str(most), str(folder), "--data-root", str(data_root)]
    return subprocess.run(command, capture_output=True, timeout=300, check=False).returncode


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def fixed(small_root, small_data, tmp_path_factory) -> dict:
    """The result of a run that has a micro-batch of 4 from the start."""
    folder = run(tmp_path_factory.mktemp("fixed"), small_data, 4)
    assert attempt(folder, small_root) == 0
    assert not (folder / "micro_batch.json").exists()
    return result_of(folder)


@pytest.mark.slow
def test_auto_gives_the_bits_of_its_number(small_root, small_data, tmp_path, fixed):
    """Tries with other engines leave no trace in the training."""
    folder = run(tmp_path / "a", small_data, "auto")
    assert attempt(folder, small_root) == 0
    assert json.loads((folder / "micro_batch.json").read_text())["micro_batch_size"] == 4
    assert result_of(folder)["parameters_sha256"] == fixed["parameters_sha256"]
    assert result_of(folder)["micro_batch_size"] == 4


@pytest.mark.slow
def test_out_of_memory_halves_once(small_root, small_data, tmp_path, fixed):
    """The second attempt has half of the micro-batch, and the bits of a run that began so."""
    folder = run(tmp_path / "a", small_data, 8)
    assert attempt(folder, small_root) == 1
    record = lifecycle.read_attempt(str(folder), 1)
    assert (record["reason"], record["next_overrides"]) == ("oom_halved", {"micro_batch_size": 4})
    assert record["error"].startswith("torch.OutOfMemoryError: CUDA out of memory")
    assert "GiB resident of" in record["error"], "memory of the process"
    assert record["error"].endswith("retried with micro_batch_size 4")
    assert attempt(folder, small_root) == 0
    assert lifecycle.read_attempt(str(folder), 2)["overrides"] == {"micro_batch_size": 4}
    assert result_of(folder)["parameters_sha256"] == fixed["parameters_sha256"]
    trained = [line for line in read_metrics(RunFolder(folder)) if line["kind"] == "train"]
    assert all(line["model_tflop_s"] > 0 and line["data_wait_s"] >= 0 for line in trained)
    assert result_of(folder)["model_tflop_s"] > 0
