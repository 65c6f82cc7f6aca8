"""The first grid of a data set: rows, tasks, metrics and sizes, read by the loader of grids."""

import re

import pytest
from login_study import pack

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.first_grid import MIN_STEPS, FirstGrid
from furnace_hpc.config.grids.grid import read_grid
from furnace_hpc.config.manifest import Manifest, read_manifest
from furnace_hpc.config.train_config import with_steps
from furnace_hpc.launch.planning.dataset_checks import _check_target

SINGLE = {"kind": "single_label", "classes": ["bad", "good"]}
MULTI = {"kind": "multi_label", "classes": ["a", "b", "c"]}


@pytest.fixture
def manifest(tmp_path):
    """Make the manifest of a pack with these modalities and labels."""

    def make(modalities=("text", "image", "audio"), num_train=2000, labels=None, **changes):
        content = {
            "modalities": list(modalities),
            "splits": {"train": num_train, "val": 100, "test": 100},
            "labels": labels or {"stars": SINGLE},
        }
        return read_manifest(pack(tmp_path / "pack", **content, **changes))

    return make


def loaded(tmp_path, manifest: Manifest, name="mine", packs=("reviews",), lacking=None):
    """Write the grid and read it with the loader. Return it and its rows by name."""
    path = tmp_path / "grid.yaml"
    path.write_text(FirstGrid(name, packs, manifest, lacking or {}).text())
    grid = read_grid(path)
    return grid, {row.name: row for row in expand_rows(grid)}


def test_rows_of_three_modalities(tmp_path, manifest):
    """Each alone, each left out, and concatenation. All else is equal."""
    grid, rows = loaded(tmp_path, manifest())
    used = {name: row.config.model.modalities for name, row in rows.items()}
    every = ("text", "image", "audio")
    assert used == {
        "all": every,
        "only_text": ("text",),
        "only_image": ("image",),
        "only_audio": ("audio",),
        "no_text": ("image", "audio"),
        "no_image": ("text", "audio"),
        "no_audio": ("text", "image"),
        "concat": every,
        "twice_epochs": every,
    }
    assert grid.reference == "all"
    assert grid.sanity == ("only_text", "only_image", "only_audio", "twice_epochs")
    assert grid.seeds == (0, 1, 2, 3, 4)
    fusions = {name: row.config.model.fusion for name, row in rows.items()}
    assert {name for name, fusion in fusions.items() if fusion == "concat"} == {"concat"}
    assert {row.config.data.name for row in rows.values()} == {"reviews"}
    epochs = {name: row.config.epochs for name, row in rows.items()}
    assert epochs.pop("twice_epochs") == 2 * rows["all"].config.epochs
    assert set(epochs.values()) == {rows["all"].config.epochs}


def test_rows_of_two_modalities(tmp_path, manifest):
    """One left out is the other one alone, so it is no row of its own."""
    grid, rows = loaded(tmp_path, manifest(("image", "audio")))
    assert list(rows) == ["all", "only_image", "only_audio", "concat", "twice_epochs"]
    assert rows["only_audio"].config.model.modalities == ("audio",)
    assert grid.sanity == ("only_image", "only_audio", "twice_epochs")


def test_rows_of_one_modality(tmp_path, manifest):
    """Width and learning rate, since there is nothing to combine."""
    grid, rows = loaded(tmp_path, manifest(("text",)))
    assert list(rows) == ["base", "half_width", "double_width", "low_lr", "twice_epochs"]
    assert grid.reference == "base"
    assert grid.sanity == ("twice_epochs",)
    widths = [row.config.model.width for row in rows.values()]
    assert widths == [64, 32, 128, 64, 64]
    assert rows["base"].config.optimizer.lr == 3e-3
    assert rows["low_lr"].config.optimizer.lr == 1e-3
    assert {row.config.model.modalities for row in rows.values()} == {("text",)}


def test_the_metric_follows_from_the_task(tmp_path, manifest):
    grid, rows = loaded(tmp_path, manifest())
    assert grid.metrics == ("test/stars/accuracy", "test/stars/f1_macro")
    assert [task.kind for task in rows["all"].config.tasks] == ["single_label"]


def test_several_tasks_and_several_labels(tmp_path, manifest):
    """Words that YAML would read as something else stay names."""
    labels = {"genres": MULTI, "no": SINGLE}
    grid, rows = loaded(tmp_path, manifest(labels=labels), name="010", packs=("null",))
    tasks = {task.name: task.kind for task in rows["all"].config.tasks}
    assert tasks == {"genres": "multi_label", "no": "single_label"}
    assert grid.metrics == ("test/genres/map", "test/genres/f1_macro", "test/no/accuracy")
    assert grid.name == "010"
    assert rows["all"].config.data.name == "null"
    assert rows["all"].config.selection_metric == "val/genres/map"


def test_targets_have_metrics_of_their_own(tmp_path, manifest):
    """The check of the data knows their names."""
    mood = {"kind": "regression", "classes": ["valence", "very happy"]}
    statistics = {"label.mood": {"mean": [0, 0], "std": [1, 1]}}
    made = manifest(labels={"mood": mood}, statistics=statistics)
    grid, _ = loaded(tmp_path, made)
    names = ("test/mood/mae", "test/mood/mae:valence", "test/mood/mae:very_happy")
    assert grid.metrics == names
    _check_target(names[2], made, tmp_path)
    with pytest.raises(ConfigError, match="has no target 'valance'; did you mean 'valence'?"):
        _check_target("test/mood/mae:valance@text", made, tmp_path)


def test_folds_become_packs(tmp_path, manifest):
    grid, rows = loaded(tmp_path, manifest(), packs=("mine-fold0", "mine-fold1"))
    assert grid.packs == ("mine-fold0", "mine-fold1")
    assert rows["concat"].packs == grid.packs


def test_rows_without_samples_are_comments(tmp_path, manifest):
    """The comment names the option that makes the row possible."""
    grid, rows = loaded(tmp_path, manifest(), lacking={("audio",): 7, ("image", "audio"): 2})
    assert not {"only_audio", "no_text"} & {*rows, *grid.sanity}
    assert {"only_text", "only_image", "no_image", "no_audio"} < set(rows)
    text = (tmp_path / "grid.yaml").read_text()
    assert "7 samples have no audio. Pack with --require audio\n" in text
    assert "2 samples have no image or audio. Pack with --require image --require audio\n" in text


@pytest.mark.parametrize(
    ("num_train", "width", "batch", "epochs", "steps"),
    [
        (1, 32, 1, 300, MIN_STEPS),
        (10, 32, 8, 240, MIN_STEPS),
        (48, 32, 16, 100, MIN_STEPS),
        (1_000, 32, 16, 20, 1_250),
        (1_001, 64, 32, 10, 313),
        (20_000, 64, 32, 10, 6_250),
        (50_000, 128, 128, 10, 3_907),
        (2_000_000, 256, 256, 5, 39_063),
    ],
)
def test_sizes_follow_from_the_train_split(
    tmp_path, manifest, num_train, width, batch, epochs, steps
):
    _, rows = loaded(tmp_path, manifest(num_train=num_train))
    config = rows["all"].config
    assert (config.model.width, config.global_batch_size, config.epochs) == (width, batch, epochs)
    assert with_steps(config, num_train).steps == steps
    assert config.evaluation.every == config.checkpoint_every == steps // 10


def test_large_images_are_evaluated_in_small_batches(tmp_path, manifest):
    columns = {"image": {"dtype": "uint8", "shape": [3, 224, 224]}}
    _, rows = loaded(tmp_path, manifest(columns=columns))
    assert rows["all"].config.evaluation.batch_size == 32


def test_trained_encoders_can_be_uncommented(tmp_path, manifest):
    path = tmp_path / "grid.yaml"
    text = FirstGrid("mine", ("reviews",), manifest()).text()
    path.write_text(re.sub(r"^    # (?=\w+: )", "    ", text, flags=re.MULTILINE))
    model = expand_rows(read_grid(path))[0].config.model
    assert model.text_weights == "bert-base-uncased"
    assert (model.image_encoder, model.image_weights) == (
        "vit",
        "google/vit-base-patch16-224-in21k",
    )
