"""Evaluation of a multi-label set with missing modalities: real columns, one process, no DeepSpeed."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from make import make_config
from torch import nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Labels, Statistics
from furnace_hpc.config.metrics import metric_names
from furnace_hpc.config.model_config import TaskConfig
from furnace_hpc.data.columns import open_columns, write_columns
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.engine.distributed import Processes
from furnace_hpc.engine.evaluation import evaluate
from furnace_hpc.engine.setup import _check_presence
from furnace_hpc.model.encoders import InputShapes
from furnace_hpc.model.losses import total_loss
from furnace_hpc.model.network import FusionModel
from furnace_hpc.model.scores import multi_label_scores, tune_threshold

NAMES, TASK = ("text", "image", "audio"), TaskConfig(name="genre", kind="multi_label")
ALONE = Processes(0, 0, 1, torch.device("cpu"))


class AsEngine(nn.Module):
    """What evaluation asks of an engine: to be called, and its module."""

    def __init__(self, module: FusionModel) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments):
        return self.module(*arguments)


def columns_of(seed: int, N: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    present = rng.random((N, 3)) > 0.4
    present[:, 1] |= ~present.any(1)
    return {
        "sample_id": np.arange(N, dtype=np.int32),
        "text": rng.integers(4, 20, (N, 6)).astype(np.int16),
        "text_length": np.full(N, 6, np.int16),
        "image": rng.integers(0, 255, (N, 1, 16, 16)).astype(np.uint8),
        "audio": rng.normal(size=(N, 40, 12)).astype(np.float16),
        "audio_length": np.full(N, 12, np.int16),
        "present": present.astype(np.uint8),
        "label.genre": (rng.random((N, 5)) > 0.6).astype(np.uint8),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("genres") / "genres"
    write_columns(
        folder,
        splits={split: columns_of(seed) for seed, split in enumerate(("train", "val", "test"))},
        dataset="genres",
        modalities=NAMES,
        labels={"genre": Labels(kind="multi_label", classes=tuple("abcde"))},
        statistics={
            "image": Statistics(mean=(128,), std=(70,)),
            "audio": Statistics(mean=(0,) * 40, std=(1,) * 40),
        },
        vocab_size=20,
        preprocessing={},
    )
    return folder


def test_a_multi_label_run_is_scored_with_the_threshold_of_validation_on_every_subset(data):
    config, columns = make_config(tasks=[TASK.model_dump()]), open_columns(data)
    torch.manual_seed(0)
    model = FusionModel(config.model, InputShapes.of(columns.manifest), {"genre": 5})
    readers = {
        split: BatchReader(columns, split, NAMES, ("genre",), ALONE.device)
        for split in columns.manifest.splits
    }
    batch = readers["train"].read(np.arange(40))
    assert (batch.labels["genre"].dtype, batch.labels["genre"].shape) == (torch.float32, (40, 5))
    output = model(batch.inputs, batch.lengths, batch.present_BM)
    total_loss(output, batch.labels, batch.present_BM, config.loss, config.tasks)["loss"].backward()
    engine = AsEngine(model)

    val = evaluate(engine, readers["val"], "val", config.tasks, 16, ALONE)
    labels = {
        split: torch.from_numpy(columns_of(seed)["label.genre"]).float()
        for split, seed in (("val", 1), ("test", 2))
    }
    assert val.thresholds == {"genre": tune_threshold(val.logits["genre"], labels["val"])}
    test = evaluate(
        engine,
        readers["test"],
        "test",
        config.tasks,
        16,
        ALONE,
        thresholds=val.thresholds,
        with_subsets=True,
    )
    assert test.thresholds == val.thresholds
    assert test.scores["test/genre/threshold"] == val.thresholds["genre"]
    whole = multi_label_scores(test.logits["genre"], labels["test"], val.thresholds["genre"])
    assert {name: test.scores[f"test/genre/{name}"] for name in whole} == pytest.approx(
        whole, nan_ok=True
    )
    assert test.scores["test/genre/map@text+image+audio"] == test.scores["test/genre/map"]
    there = columns_of(2)["present"].astype(bool)
    assert test.scores["test/genre/samples@text"] == there[:, 0].sum() < 40
    assert test.scores["test/consistency/samples@text+audio"] == there[:, [0, 2]].all(1).sum()
    assert all(math.isfinite(value) for value in test.scores.values())
    # A grid may ask for any of these, and for nothing else.
    known = set(metric_names({"genre": "multi_label"}, NAMES, ("val", "test")))
    assert known == {name for name in val.scores | test.scores if "/genre/samples@" not in name}


CLIP_FRAMES = 3


def write_clips(folder: Path) -> Path:
    """Clips of three frames with sound, some without one of them; two tasks."""
    splits = {}
    for seed, split in enumerate(("train", "val", "test")):
        rng, columns = np.random.default_rng(seed + 10), columns_of(seed)
        columns["image"] = rng.integers(0, 255, (40, CLIP_FRAMES, 1, 16, 16)).astype(np.uint8)
        columns["present"] = columns["present"][:, 1:] | ~columns["present"][:, 1:].any(
            1, keepdims=True
        )
        columns["label.digit"] = rng.integers(0, 4, 40).astype(np.int16)
        splits[split] = {
            name: column for name, column in columns.items() if not name.startswith("text")
        }
    manifest = write_columns(
        folder,
        splits=splits,
        dataset="clips",
        modalities=("image", "audio"),
        labels={
            "genre": Labels(kind="multi_label", classes=tuple("abcde")),
            "digit": Labels(kind="single_label", classes=tuple("0123")),
        },
        statistics={
            "image": Statistics(mean=(128,), std=(70,)),
            "audio": Statistics(mean=(0,) * 40, std=(1,) * 40),
        },
        vocab_size=None,
        preprocessing={},
    )
    of_clips = manifest.model_copy(update={"image_frames": CLIP_FRAMES})
    (folder / "manifest.json").write_text(of_clips.model_dump_json())
    return folder


def test_a_clip_is_scored_by_its_middle_frame_or_by_the_mean_probability_of_all(tmp_path):
    columns, tasks = open_columns(write_clips(tmp_path / "clips")), (TASK, TaskConfig(name="digit"))
    config = make_config(
        tasks=[task.model_dump() for task in tasks], model__modalities=["image", "audio"]
    )
    torch.manual_seed(0)
    model = FusionModel(
        config.model, InputShapes.of(columns.manifest), {"genre": 5, "digit": 4}
    ).eval()
    reader = BatchReader(columns, "test", ("image", "audio"), ("genre", "digit"), ALONE.device)
    by_frame, by_subset = [], []
    with torch.no_grad():
        for frame in range(CLIP_FRAMES):
            batch = reader.read(np.arange(40), np.full(40, frame))
            output = model(batch.inputs, batch.lengths, batch.present_BM, [(0,)])
            by_frame.append(output["logits"])
            by_subset.append(output["subsets"][0])

    def scored(**how):
        return evaluate(
            AsEngine(model), reader, "test", tasks, 16, ALONE, thresholds={"genre": 0.5}, **how
        )

    middle, mean = scored(), scored(all_frames=True, with_subsets=True)
    for task in ("genre", "digit"):
        torch.testing.assert_close(middle.logits[task], by_frame[1][task])
        assert not torch.allclose(by_frame[0][task], by_frame[1][task], atol=1e-3)
    genre, digit = (torch.stack([frame[task] for frame in by_frame]) for task in ("genre", "digit"))
    torch.testing.assert_close(mean.logits["genre"].sigmoid(), genre.sigmoid().mean(0))
    torch.testing.assert_close(mean.logits["digit"].softmax(1), digit.softmax(2).mean(0))
    # of a subset too, where those without its modality are left out
    seen = batch.present_BM[:, 0]
    image = torch.stack([frame["genre"][seen] for frame in by_subset]).sigmoid().mean(0)
    alone = multi_label_scores(image.logit(), batch.labels["genre"][seen], 0.5)
    assert mean.scores["test/genre/map@image"] == pytest.approx(alone["map"])
    assert mean.scores["test/genre/loss@image"] == pytest.approx(alone["loss"], rel=1e-5)
    # a network that sees no picture sees one thing, however it is asked
    deaf = BatchReader(columns, "test", ("audio",), ("genre", "digit"), ALONE.device)
    assert deaf.image_frames is None


def test_samples_without_any_modality_that_the_network_sees_are_said_before_training(data):
    columns = open_columns(data)
    reader = BatchReader(columns, "test", ("text",), ("genre",), ALONE.device)
    absent = ~columns_of(2)["present"][:, 0].astype(bool)
    with pytest.raises(ConfigError) as error:
        _check_presence(reader, "test", ("text",), columns.manifest)
    assert str(error.value).startswith(
        f"{absent.sum()} samples of split 'test', such as sample_id {np.flatnonzero(absent)[0]}, have none of text: "
    )
    _check_presence(
        BatchReader(columns, "test", NAMES, ("genre",), ALONE.device),
        "test",
        NAMES,
        columns.manifest,
    )
