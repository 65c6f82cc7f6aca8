"""`furnace new`: the written grid can be submitted as printed, and bad input is one clear error."""

import re
import shlex
import sys
from pathlib import Path

import forked_commands
import numpy as np
import pytest
from login_study import command, pack

from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import load_grid, read_grid

LABELS = {"stars": {"kind": "single_label", "classes": ["bad", "good"]}}


def packed(folder: Path, absent: tuple[int, ...] = (), **changes) -> Path:
    """A pack of texts and images. The samples `absent` have no image."""
    content = {"modalities": ["text", "image"], "labels": LABELS, **changes}
    pack(folder, **content)
    for split in ("train", "val", "test"):
        (folder / split).mkdir(exist_ok=True)
        present = np.ones((8, 2), np.uint8)
        if split == "train":
            present[list(absent), 1] = 0
        np.save(folder / split / "present.npy", present)
    return folder


def refused(place: Path, *words: object) -> str:
    """The error of `furnace new`. It changes nothing."""
    before = sorted(place.rglob("*"))
    done = command("new", place, *map(str, words))
    assert (done.returncode, done.stdout) == (2, "")
    assert sorted(place.rglob("*")) == before
    (line,) = done.stderr.splitlines()
    return line.removeprefix("error: ")


def run_printed(place: Path, stdout: str, *options: str):
    """Run the command that `furnace new` prints last."""
    _, _, line = stdout.splitlines()[-1].partition("then: ")
    words = shlex.split(line)
    words = words[words.index("submit") + 1 :]
    submit = [sys.executable, "-m", "furnace_hpc.submit", *words, *options]
    return forked_commands.run(submit, cwd=place)


def test_the_printed_command_plans_every_run(tmp_path):
    packed(tmp_path / "data" / "reviews")
    done = command("new", tmp_path, "reviews", "--data", "data/reviews")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:3] == [
        "wrote experiments/reviews.yaml",
        "rows: all, only_text, only_image, concat, twice_epochs",
        "5 rows x 5 seeds = 25 runs, 300 epochs in batches of 8 samples each",
    ]
    planned = run_printed(tmp_path, done.stdout, "--dry-run", "--cluster", "local")
    assert (planned.returncode, planned.stderr) == (0, "")
    assert "25 runs" in planned.stdout
    quick = run_printed(
        *(tmp_path, done.stdout, "--dry-run", "--cluster", "local"),
        *("--variant", "all", "--seed", "0"),
    )
    assert (quick.returncode, quick.stderr) == (0, "")
    assert "1 run" in quick.stdout


def test_the_data_set_of_that_name_is_the_default(tmp_path):
    packed(tmp_path / "data" / "reviews")
    assert command("new", tmp_path, "reviews").returncode == 0
    assert command("new", tmp_path, "second", "--data", "reviews").returncode == 0
    for name in ("reviews", "second"):
        row = expand_rows(read_grid(tmp_path / "experiments" / f"{name}.yaml"))[0]
        assert row.config.data.name == "reviews"


def test_another_data_root_is_in_the_printed_command(tmp_path):
    packed(tmp_path / "far away" / "reviews")
    done = command("new", tmp_path, "mine", "--data", "far away/reviews")
    assert "--data-root" in done.stdout.splitlines()[-1]
    planned = run_printed(tmp_path, done.stdout, "--dry-run", "--cluster", "local")
    assert (planned.returncode, planned.stderr) == (0, "")


def test_rows_that_lack_samples_are_left_out(tmp_path):
    """The plan refused them, so the written grid could not be submitted."""
    packed(tmp_path / "data" / "reviews", absent=(2, 5))
    done = command("new", tmp_path, "reviews")
    assert "rows: all, only_text, concat, twice_epochs\n" in done.stdout
    text = (tmp_path / "experiments" / "reviews.yaml").read_text()
    assert "2 samples have no image. Pack with --require image" in text
    planned = run_printed(tmp_path, done.stdout, "--dry-run", "--cluster", "local")
    assert (planned.returncode, planned.stderr) == (0, "")


def test_packs_of_waveforms_and_for_encoders(tmp_path):
    """Waveforms get an encoder that takes them. Others that the pack is made for are comments."""
    columns = {
        "label.digit": {"dtype": "uint8", "shape": []},
        "audio": {"dtype": "int16", "shape": [16_000]},
        "text": {"dtype": "int32", "shape": [16]},
    }
    waves = {"store": "waveform", "sample_rate_hz": 16_000, "normalises": False}
    packed(
        tmp_path / "data" / "calls",
        modalities=["text", "audio"],
        columns=columns,
        preprocessing={"audio": waves, "for": {"text": {"encoder": "roberta-base"}}},
    )
    done = command("new", tmp_path, "calls")
    assert (done.returncode, done.stderr) == (0, "")
    assert "rows: all, only_text, only_audio, concat, twice_epochs\n" in done.stdout
    text = (tmp_path / "experiments" / "calls.yaml").read_text()
    assert re.search(r"    # text: \{encoder: roberta-base\} +# the pack is made for it\n", text)
    assert "bert-base-uncased" not in text
    row = expand_rows(read_grid(tmp_path / "experiments" / "calls.yaml"))[0]
    assert row.config.model.audio.encoder == "random:wav2vec2"
    planned = run_printed(tmp_path, done.stdout, "--dry-run", "--cluster", "local")
    assert (planned.returncode, planned.stderr) == (0, "")


def test_folds_are_packs(tmp_path):
    folds = [f"data/mine-fold{number}" for number in range(3)]
    for number, fold in enumerate(folds):
        packed(tmp_path / fold, fingerprint=f"{number:016}")
    words = [word for fold in folds for word in ("--data", fold)]
    done = command("new", tmp_path, "mine", *words)
    assert "5 rows x 3 packs x 5 seeds = 75 runs" in done.stdout
    grid = read_grid(tmp_path / "experiments" / "mine.yaml")
    assert grid.packs == ("mine-fold0", "mine-fold1", "mine-fold2")
    same = [*words, "--data", "data/mine-fold1", "--force"]
    assert "data/mine-fold1 is given twice" in refused(tmp_path, "mine", *same)


@pytest.mark.parametrize("name", ["ablation", "mmimdb", "tuned"])
def test_a_shipped_grid_is_copied_with_its_comments(tmp_path, name):
    done = command("new", tmp_path, "010", "--from", name)
    assert (done.returncode, done.stderr) == (0, "")
    shipped, copy = load_grid(name), read_grid(tmp_path / "experiments" / "010.yaml")
    assert copy == shipped.model_copy(update={"name": "010"})
    text = (tmp_path / "experiments" / "010.yaml").read_text()
    original = Path(shipped.source.path).read_text()
    assert text.count("\n") == original.count("\n")
    assert re.findall("# .*", text) == [
        comment.replace(f"--grid {name}", "--grid 010") for comment in re.findall("# .*", original)
    ]


def test_a_grid_is_not_replaced_without_force(tmp_path):
    packed(tmp_path / "data" / "reviews")
    command("new", tmp_path, "reviews")
    path = tmp_path / "experiments" / "reviews.yaml"
    path.write_text("my work")
    assert refused(tmp_path, "reviews") == (
        "experiments/reviews.yaml exists. Choose another name, or replace it with --force"
    )
    assert path.read_text() == "my work"
    assert command("new", tmp_path, "reviews", "--force").returncode == 0
    assert read_grid(path).name == "reviews"


def test_bad_names_and_options(tmp_path):
    packed(tmp_path / "data" / "reviews")
    packed(tmp_path / "data" / "two words")
    packed(tmp_path / "other" / "reviews")
    (tmp_path / "mine.csv").write_text("text,label\n")
    both = ("--data", "data/reviews", "--from", "ablation")
    two = ("--data", "data/reviews", "--data", "other/reviews")
    expected = {
        ("mine.yaml",): "NAME is 'mine.yaml', which is a path",
        ("a b",): "NAME is 'a b', wanted 1 to 64 letters",
        ("ablation", "--data", "data/reviews"): "'ablation' is the name of a shipped grid",
        ("mine",): "there is no data set data/mine. Give --data DIR",
        ("mine", "--data", "nowhere"): "nowhere is not a folder",
        ("mine", "--data", "mine.csv"): "mine.csv is a file. Pack it first: ",
        ("mine", "--data", "data/two words"): "a grid cannot name this folder",
        ("mine", "--data", "other"): "other' has no manifest.json",
        ("mine", *both): "--data and --from are both given",
        ("mine", *two): "are in two folders",
        ("mine", "--from", "ablatoin"): "did you mean 'ablation'?",
    }
    for words, message in expected.items():
        assert message in refused(tmp_path, *words), words


def test_packs_that_cannot_be_trained_on(tmp_path):
    """A split is empty, there is no label, or a file is damaged."""
    packed(tmp_path / "data" / "empty", splits={"train": 8, "val": 0, "test": 8})
    assert "has no samples in ['val']" in refused(tmp_path, "empty")
    packed(tmp_path / "data" / "bare", labels={})
    assert "bare has no label. Pack it with --label" in refused(tmp_path, "bare")
    damaged = packed(tmp_path / "data" / "damaged")
    (damaged / "train" / "label.digit.npy").write_bytes(b"")
    assert "label.digit.npy has 0 bytes" in refused(tmp_path, "damaged")
