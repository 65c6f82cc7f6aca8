"""`furnace publish`: the chosen run, card, checksums, and that nothing private is left."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_once import made_once
from publish_study import NODE, SCORES, USER, make_study, write_runs
from tables_study import complete, study
from use_study import STEP

import furnace_hpc
from furnace_hpc.cli import run_command
from furnace_hpc.commands.publish import main
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import read_grid, results_name, with_settings
from furnace_hpc.inference import Predictor
from furnace_hpc.inference.model_folder import read_exported
from furnace_hpc.publishing.card import _training
from furnace_hpc.publishing.choice import choose
from furnace_hpc.publishing.private import Private, without_paths
from furnace_hpc.runs.folder import GridFolder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    """The home folder of the study's user."""
    place = made_once(tmp_path_factory, USER, lambda folder: make_study(folder, small_data))
    return place


@pytest.fixture
def of_gretchen(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of this user, in the home folder."""
    monkeypatch.chdir(home)
    for name, value in {"HOME": str(home), "LOGNAME": USER, "USER": USER}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SITE_API_TOKEN", "Abcdefghi1234567")
    return home


def command(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        run_command(main, [str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


@pytest.fixture
def published(of_gretchen: Path, tmp_path: Path, capsys: Any) -> Path:
    """The folder of the study."""
    out = tmp_path / "out"
    code, printed, problem = command(
        capsys, "--grid", "study", "--out", out, "--license", "apache-2.0"
    )
    assert code == 0, problem
    assert "has the best mean val/digit/accuracy" in printed
    return out


def test_the_folder_is_complete_and_predicts(published: Path, of_gretchen: Path):
    """Validation chose row and seed. Checksums hold, and the model needs nothing else."""
    names = {path.name for path in published.iterdir()}
    assert names == {
        *("README.md", "SHA256SUMS", "config.json", "grid.yaml", "model.safetensors"),
        *("results", "tokenizer.json"),
    }
    assert {"report.html", "table.csv", "table.md", "table.tex", "runs.csv"} <= {
        path.name for path in (published / "results").iterdir()
    }
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=published, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = [path for path in published.rglob("*") if path.is_file()]
    assert done.stdout.count(": OK") == len(files) - 1
    origin = json.loads((published / "config.json").read_text())["provenance"]
    assert (origin["variant"], origin["seed"], origin["step"]) == ("full", 1, STEP)
    moved = shutil.copytree(published, of_gretchen.parent / "elsewhere")
    answer = Predictor.load(moved, "cpu").predict(text="it is even").tasks["digit"]
    [checkpoint] = (of_gretchen / "runs" / "study").glob("full-s1-*/checkpoints/step-*/zero/*.pt")
    weights = torch.load(checkpoint)["module"]
    model = Predictor.load(moved, "cpu").model.network
    for name, value in model.state_dict().items():
        assert torch.equal(value.float(), weights[name].to(value.dtype).float()), name
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    shutil.rmtree(moved)


def test_nothing_private_is_published(published: Path, of_gretchen: Path):
    """Neither home, user and node, nor a secret. The config had such a path before."""
    spec = next((of_gretchen / "runs" / "study").glob("*/spec.json")).read_text()
    assert str(of_gretchen) in spec
    for path in published.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for word in (str(of_gretchen), str(of_gretchen.parent), USER, NODE, "Abcdefghi1234567"):
                assert word.encode() not in content, (path, word)
    config = json.loads((published / "config.json").read_text())["config"]
    assert config["model"]["text"]["encoder"] == "tiny-bert"
    assert "tiny-bert" in (published / "grid.yaml").read_text()


def test_the_card_is_read_by_the_hub_client(published: Path):
    """Its scores are those of the published run, and the table has intervals."""
    from huggingface_hub import ModelCard

    read = ModelCard.load(published / "README.md")
    assert read.data.license == "apache-2.0"
    assert read.data.library_name == "furnace-hpc"
    assert {"multimodal", "text", "image", "audio"} <= {*read.data.tags}
    [result] = read.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", SCORES["full", 1][1])
    assert (result.dataset_name, result.dataset_split) == ("tridigits", "test")
    config = json.loads((published / "config.json").read_text())
    for words in (
        f"fingerprint `{config['data']['fingerprint']}`",
        "| variant |",
        "Of 2 rows, full has the best mean val/digit/accuracy. Of its 2 finished runs",
        f"pip install furnace_hpc-{furnace_hpc.__version__}-py3-none-any.whl",
        "furnace predict --model . --text",
        "## Limits",
        "sha256sum -c SHA256SUMS",
    ):
        assert words in read.content, words
    assert (published / "results" / "table.md").read_text().rstrip() in read.content


def test_the_card_names_precision_and_processes(published: Path):
    """Precision and ZeRO stage are named with any number of processes."""
    exported, chosen = (
        read_exported(published),
        SimpleNamespace(run=SimpleNamespace(own_result=None)),
    )
    precision = exported.config.deepspeed.precision
    assert f"{precision}, ZeRO stage 0, 1 process." in _training(chosen, exported)
    origin = exported.provenance.model_copy(update={"world_size": 4, "zero_stage": 2})
    many = exported.model_copy(update={"provenance": origin})
    assert f"{precision}, ZeRO stage 2, 4 processes." in _training(chosen, many)


def test_the_card_states_the_settings(
    of_gretchen: Path, small_data: Path, tmp_path: Path, capsys: Any
):
    """A model of `--set` is one of another study. Settings of resources change no number."""
    settings = ["optimizer.lr=0.002", "model.dropout=0.1", "resources.timeout_min=30"]
    folder = GridFolder(tmp_path / "runs" / "study")
    folder.path.mkdir(parents=True)
    shutil.copy(of_gretchen / "runs" / "study" / "grid.yaml", folder.grid)
    grid = with_settings(read_grid(folder.grid), settings)
    write_runs(grid, folder, small_data)
    options = [word for setting in settings for word in ("--set", setting)]
    out = tmp_path / "out"
    roots = ("--runs-root", folder.path.parent, "--out", out)
    code, printed, problem = command(capsys, "--grid", "study", *options, *roots)
    assert code == 0, problem
    given = "--set optimizer.lr=0.002 --set model.dropout=0.1"
    assert f" of `{given}` to {out}; read " in printed
    text = (out / "README.md").read_text()
    assert f"All rows were trained with `{given}`, which grid.yaml contains." in text
    assert f"name: {results_name(grid)}-full" in text
    published = read_grid(out / "grid.yaml")
    assert published.settings == {"optimizer.lr": 0.002, "model.dropout": 0.1}
    assert results_name(published) == results_name(grid) != "study"
    config = read_exported(out).config
    assert (config.optimizer.lr, config.model.dropout) == (0.002, 0.1)


def test_a_folder_is_not_overwritten(published: Path, capsys: Any):
    before = (published / "SHA256SUMS").stat().st_ino
    code, _, problem = command(capsys, "--grid", "study", "--out", published)
    assert (code, "contains a published model" in problem) == (2, True)
    (published / "notes.txt").write_text("mine")
    code, _, problem = command(capsys, "--grid", "study", "--out", published, "--force")
    assert (code, "contains 'notes.txt', which `furnace publish` did not write" in problem) == (
        2,
        True,
    )
    assert (published / "SHA256SUMS").stat().st_ino == before
    (published / "notes.txt").unlink()
    code, _, problem = command(
        capsys, "--grid", "study", "--out", published, "--force", "--variant", "base"
    )
    assert code == 0, problem
    origin = json.loads((published / "config.json").read_text())["provenance"]
    assert (origin["variant"], origin["seed"]) == ("base", 1), "by validation, not by test"
    assert [path.name for path in published.parent.iterdir()] == ["out"]


def test_a_name_in_a_class_is_an_error(of_gretchen: Path, tmp_path: Path, capsys: Any):
    """Removing it would change the model."""
    from furnace_hpc.publishing import folder

    def names(*given: Any) -> Private:
        return Private((), ("accuracy",))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "_private", names)
        code, _, problem = command(capsys, "--grid", "study", "--out", tmp_path / "out")
    assert code == 2
    assert "scores of config.json contains a private name" in problem
    assert not (tmp_path / "out").exists()


def test_rows_without_results_are_named(tmp_path: Path):
    ablation = complete(tmp_path)
    chosen = choose(ablation, None)
    values = {
        row.variant: [run.own_result.metrics[chosen.metric] for run in row.runs]
        for row in ablation.rows
    }
    best = max(values, key=lambda name: sum(values[name]))
    assert (chosen.row.variant, chosen.value) == (best, max(values[best]))
    assert "Of 4 rows" in chosen.rule
    with pytest.raises(ConfigError, match="unknown row --variant 'ful'; .*full"):
        choose(ablation, "ful")
    assert study()


def test_paths_become_their_last_part():
    given = {"a": "/data/x/bert", "b": ["/m/09x0r/y", 1], "c": "/", "d": ["/a/b"] * 100, "e": "x/y"}
    cleaned = without_paths(given)
    assert cleaned == given | {"a": "bert", "b": ["y", 1]}


def test_short_and_common_names_stay(monkeypatch: pytest.MonkeyPatch):
    """A user named like a row keeps the table readable."""
    monkeypatch.setenv("LOGNAME", "base")
    private = Private.of_this_user([Path("/scratch/base/runs")], ["n1", "node-7"], "variants: base")
    assert private.names == tuple(
        name for name in private.names if name not in ("base", "n1", "root")
    )
    assert (
        private.clean("row base on node-7 in /scratch/base/runs/x") == "row base on user in runs/x"
    )
    assert private.found_in(b"see /scratch/base/runs/x", True) == "/scratch/base/runs"
    assert private.found_in(b"token=Abcdefghi1234567", True) == "a text that looks like a secret"
