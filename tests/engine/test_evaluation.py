"""Evaluation with one process and no DeepSpeed: multi-label, missing modalities, clips."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from clips_study import CLIP_FRAMES, columns_of, write_clips
from make import make_config, make_context
from torch import nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Labels, Statistics
from furnace_hpc.config.metrics import metric_names
from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.data.columns import open_columns, write_columns
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.engine.evaluation import evaluate
from furnace_hpc.engine.setup import check_presence
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.losses import total_loss
from furnace_hpc.model.network import FusionModel
from furnace_hpc.model.scores import multi_label_scores, tune_threshold
from furnace_hpc.runs.records.verdict import verdict_of

NAMES, TASK = ("text", "image", "audio"), TaskConfig(name="genre", kind="multi_label")
CPU = torch.device("cpu")


class AsEngine(nn.Module):
    """The part of an engine that evaluation uses."""

    def __init__(self, module: FusionModel) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments):
        return self.module(*arguments)


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


def test_multi_label_scores_on_all_subsets(data):
    """All scores of the test split use the threshold of the validation split."""
    config = make_config(tasks=[TASK.model_dump()], evaluation__batch_size=16)
    columns = open_columns(data)
    torch.manual_seed(0)
    model = FusionModel(config.model, InputShapes.of(columns.manifest), {"genre": 5})
    readers = {
        split: BatchReader(columns, split, NAMES, ("genre",), CPU)
        for split in columns.manifest.splits
    }
    batch = readers["train"].read(np.arange(40))
    assert (batch.labels["genre"].dtype, batch.labels["genre"].shape) == (torch.float32, (40, 5))
    output = model(batch.inputs, batch.lengths, batch.present_BM)
    total_loss(output, batch.labels, batch.present_BM, config.loss, config.tasks)["loss"].backward()
    context = make_context(config, AsEngine(model), readers=readers)

    val = evaluate(context, "val")
    labels = {
        split: torch.from_numpy(columns_of(seed)["label.genre"]).float()
        for split, seed in (("val", 1), ("test", 2))
    }
    assert val.thresholds == {"genre": tune_threshold(val.logits["genre"], labels["val"])}
    test = evaluate(context, "test", val.thresholds, with_subsets=True)
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
    # A grid may select any of these metrics, and no other.
    known = set(metric_names({"genre": "multi_label"}, NAMES, ("val", "test")))
    assert known == {name for name in val.scores | test.scores if "/genre/samples@" not in name}


class Diverged(AsEngine):
    """An engine with NaN or infinite logits for the last sample of each batch."""

    def __init__(self, module: FusionModel, place: str, value: float) -> None:
        super().__init__(module)
        self.place, self.value = place, value

    def forward(self, *arguments):
        output = self.module(*arguments)
        last = output["subsets"][-1] if self.place == "subsets" else output["logits"]
        last["genre"][-1, 0] = self.value
        return output


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("place", "name"), [("logits", "test/genre"), ("subsets", "test/genre@text+image+audio")]
)
def test_logits_that_are_not_finite_fail_the_run(data, place, name, value):
    """An argmax over NaN would still give an accuracy."""
    config = make_config(tasks=[TASK.model_dump()], evaluation__batch_size=40)
    columns = open_columns(data)
    torch.manual_seed(0)
    model = FusionModel(config.model, InputShapes.of(columns.manifest), {"genre": 5})
    readers = {"test": BatchReader(columns, "test", NAMES, ("genre",), CPU)}
    context = make_context(config, Diverged(model, place, value), readers=readers)
    with pytest.raises(FloatingPointError) as error:
        evaluate(context, "test", {"genre": 0.5}, with_subsets=True)
    assert str(error.value) == (
        f"{name}: the logits of 1 of 40 samples are not finite. "
        f"Lower optimizer.lr or check the data."
    )
    assert verdict_of(error.value) == "nonfinite"


def test_clips_by_middle_frame_and_by_mean(tmp_path):
    """With `frames: mean`, a clip is scored by the mean probability of all frames."""
    columns, tasks = open_columns(write_clips(tmp_path / "clips")), (TASK, TaskConfig(name="digit"))
    config = make_config(
        tasks=[task.model_dump() for task in tasks],
        model__modalities=["image", "audio"],
        evaluation__batch_size=16,
    )
    torch.manual_seed(0)
    model = FusionModel(
        config.model, InputShapes.of(columns.manifest), {"genre": 5, "digit": 4}
    ).eval()
    reader = BatchReader(columns, "test", ("image", "audio"), ("genre", "digit"), CPU)
    by_frame, by_subset = [], []
    with torch.no_grad():
        for frame in range(CLIP_FRAMES):
            batch = reader.read(np.arange(40), np.full(40, frame))
            output = model(batch.inputs, batch.lengths, batch.present_BM, [(0,)])
            by_frame.append(output["logits"])
            by_subset.append(output["subsets"][0])

    def scored(frames, with_subsets):
        changed = config.model_copy(
            update={"evaluation": config.evaluation.model_copy(update={"frames": frames})}
        )
        context = make_context(changed, AsEngine(model), readers={"test": reader})
        return evaluate(context, "test", {"genre": 0.5}, with_subsets)

    middle, mean = scored("middle", with_subsets=False), scored("mean", with_subsets=True)
    for task in ("genre", "digit"):
        torch.testing.assert_close(middle.logits[task], by_frame[1][task])
        assert not torch.allclose(by_frame[0][task], by_frame[1][task], atol=1e-3)
    genre, digit = (torch.stack([frame[task] for frame in by_frame]) for task in ("genre", "digit"))
    torch.testing.assert_close(mean.logits["genre"].sigmoid(), genre.sigmoid().mean(0))
    torch.testing.assert_close(mean.logits["digit"].softmax(1), digit.softmax(2).mean(0))
    # The same holds for a subset, over the samples that have its modality.
    seen = batch.present_BM[:, 0]
    image = torch.stack([frame["genre"][seen] for frame in by_subset]).sigmoid().mean(0)
    alone = multi_label_scores(image.logit(), batch.labels["genre"][seen], 0.5)
    assert mean.scores["test/genre/map@image"] == pytest.approx(alone["map"])
    assert mean.scores["test/genre/loss@image"] == pytest.approx(alone["loss"], rel=1e-5)
    # Without image there are no frames.
    audio_only = BatchReader(columns, "test", ("audio",), ("genre", "digit"), CPU)
    assert audio_only.image_frames is None


def test_samples_without_any_modality(data):
    """Samples that have none of the network's modalities are an error before training."""
    columns = open_columns(data)
    reader = BatchReader(columns, "test", ("text",), ("genre",), CPU)
    absent = ~columns_of(2)["present"][:, 0].astype(bool)
    with pytest.raises(ConfigError) as error:
        check_presence(reader, "test", ("text",), columns.manifest)
    assert str(error.value).startswith(
        f"{absent.sum()} samples of split 'test', such as sample_id {np.flatnonzero(absent)[0]}, "
        "have none of text. "
    )
    check_presence(
        BatchReader(columns, "test", NAMES, ("genre",), CPU),
        "test",
        NAMES,
        columns.manifest,
    )
