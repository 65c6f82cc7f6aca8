"""Packs, runs and models that older versions wrote, and files of a newer format.

tests/support/make_format_files.py wrote the archives `format_N.tar.xz`.
"""

import json
import sys
import tarfile
from pathlib import Path

import forked_commands
import pytest
from pydantic import ValidationError

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest, read_manifest
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.data.columns import open_columns
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.choice import Choice
from furnace_hpc.runs.records.result import RunResult, read_result

ARCHIVES = sorted(Path(__file__).parent.glob("format_*.tar.xz"))


# What zero1_fp32 was in format 1. The content of a DeepSpeed file is part of a run's identity.
ZERO1_FP32 = {
    "zero_optimization": {
        "stage": 1,
        "contiguous_gradients": True,
        "reduce_bucket_size": 200_000_000,
        "allgather_bucket_size": 200_000_000,
    },
    "bf16": {"enabled": False},
}


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def place(request, tmp_path) -> Path:
    """A working directory with what one format has."""
    with tarfile.open(request.param) as tar:
        tar.extractall(tmp_path, filter="data")
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs/zero1_fp32.json").write_text(json.dumps(ZERO1_FP32))
    return tmp_path


def furnace(place: Path, name: str, *words: str) -> str:
    command = [sys.executable, "-m", f"furnace_hpc.{name}", *words]
    done = forked_commands.run(command, cwd=place, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_format_has_an_archive():
    """When a number rises, the last version that wrote the old one makes an archive of it first."""
    newest = max(
        model.model_fields["format"].get_default()
        for model in (Manifest, RunSpec, RunResult, Choice)
    )
    assert [path.name for path in ARCHIVES] == [
        f"format_{number}.tar.xz" for number in range(1, newest + 1)
    ]


def test_an_old_pack_can_be_read(place):
    columns = open_columns(place / "data/tiny", verify=True)
    assert columns.manifest.splits == {"train": 20, "val": 6, "test": 10}
    assert columns.manifest.fingerprint == "399e35b7e2d843af"


def test_old_runs_are_done_and_have_a_table(place):
    said = furnace(place, "status", "--grid", "study")
    assert "4 done" in said
    furnace(place, "aggregate", "--grid", "study")
    lines = (place / "results/study/table.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("| base") and "| 2 |" in line]
    assert [line for line in lines if line.startswith("| full") and "| 2 |" in line]


def test_old_runs_keep_their_ids(place):
    """The same grid and DeepSpeed file name the same runs, so nothing is trained again."""
    assert "4 runs (4 skip) on local" in furnace(place, *SUBMIT)


def test_an_old_checkpoint_can_be_exported(place):
    """The export compares its outputs with those that the old run stored."""
    [run] = place.glob("runs/study/base-s0-*")
    said = furnace(place, "export", str(run), "--out", "new", "--data-root", "data")
    assert "loaded again: equal bit for bit" in said
    assert "own for 10 test samples" in said


def test_an_old_model_predicts(place):
    said = furnace(place, "predict", "--model", "model", "--text", "it is prime", "--json")
    answer = json.loads(said)
    assert answer["modalities"] == ["text"]
    assert len(answer["tasks"]["digit"]["probabilities"]) == 10
    assert sum(answer["tasks"]["digit"]["probabilities"].values()) == pytest.approx(1)


def newer(path: Path) -> Path:
    content = json.loads(path.read_text())
    assert content["format"] == 1
    path.write_text(json.dumps(content | {"format": 2, "a_new_key": True}))
    return path


SUBMIT = ("submit", "--grid", "study.yaml", "--cluster", "local", "--dry-run")
NEWER = "has format 2, and this Furnace reads format 1. Use the newer Furnace that wrote it"


def test_a_newer_pack_is_named(place):
    path = newer(place / "data/tiny/manifest.json")
    with pytest.raises(ConfigError) as error:
        read_manifest(path.parent)
    assert str(error.value) == f"{path} {NEWER}"


def test_a_newer_result_is_named(place):
    [path] = place.glob("runs/study/base-s0-*/result.json")
    newer(path)
    with pytest.raises(ConfigError) as error:
        read_result(RunFolder(path.parent))
    assert str(error.value) == f"{path} {NEWER}"


def test_a_damaged_pack_is_no_newer_one(place):
    path = place / "data/tiny/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "x"}))
    with pytest.raises(ConfigError, match="Pack the data set again"):
        read_manifest(path.parent)
    with pytest.raises(ValidationError):
        Manifest.model_validate_json(path.read_bytes())


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("runs/study/base-s0-*/spec.json", ("export", "RUN", "--out", "new")),
        ("runs/study/base-s0-*/spec.json", SUBMIT),
        ("model/config.json", ("predict", "--model", "model", "--text", "it is prime")),
    ],
)
def test_commands_name_a_newer_format(place, file, words):
    [path] = place.glob(file)
    newer(path)
    words = [str(path.parent) if word == "RUN" else word for word in words]
    command = [sys.executable, "-m", f"furnace_hpc.{words[0]}", *words[1:]]
    done = forked_commands.run(command, cwd=place, timeout=300)
    assert done.returncode == 2, done.stdout
    assert f"{path.name} {NEWER}" in done.stderr.replace("\n", " ")
