"""Augmentation: values, and that they depend on seed, epoch and sample alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from furnace_hpc.config.augmentation import check_augmentation, special_tokens
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Labels, Statistics
from furnace_hpc.config.sections.augment import (
    AudioAugmentation,
    AugmentConfig,
    ImageAugmentation,
)
from furnace_hpc.data.columns import open_columns, write_columns
from furnace_hpc.data.loading.augment import Augmenter, gain_vector, masks
from furnace_hpc.data.loading.augment_images import boxes_of, change_colours, crop, flip
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.data.loading.draws import Stream, uniform
from furnace_hpc.data.loading.prefetch import TrainBatches

N, T, K, F = 24, 12, 6, 20
CPU = torch.device("cpu")
MODALITIES = ("text", "image", "audio")
ALL = AugmentConfig.model_validate(
    {
        "image": {"flip": 0.5, "crop": 0.5, "colour": 0.3},
        "audio": {"gain_db": 6, "noise": 0.1, "time_mask": 5, "frequency_mask": 2},
        "text": {"token_dropout": 0.4},
    }
)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{n}" for n in range(40))]


@pytest.fixture(scope="module")
def columns(tmp_path_factory):
    rng = np.random.default_rng(0)
    lengths = 4 + np.arange(N) % (T - 4)
    text = np.zeros((N, T), np.int16)
    for row, length in enumerate(lengths):
        text[row, :length] = [2, *(4 + (row + np.arange(length - 2)) % 40), 3]
    frames = 5 + np.arange(N) % (F - 5)
    audio = rng.normal(size=(N, K, F)).astype(np.float16)
    audio[np.arange(F) >= frames[:, None, None] + np.zeros((1, K, 1), int)] = 0
    folder = tmp_path_factory.mktemp("augment") / "set"
    write_columns(
        folder,
        splits={
            "train": {
                "sample_id": np.arange(N, dtype=np.int32),
                "text": text,
                "text_length": lengths.astype(np.int16),
                "image": rng.integers(0, 256, (N, 3, 10, 12), np.uint8),
                "audio": audio,
                "audio_length": frames.astype(np.int16),
                "present": np.ones((N, 3), np.uint8),
                "label.one": (np.arange(N) % 3).astype(np.int16),
            }
        },
        dataset="small",
        modalities=MODALITIES,
        labels={"one": Labels(kind="single_label", classes=("a", "b", "c"))},
        statistics={
            "image": Statistics(mean=(100.0,) * 3, std=(50.0,) * 3),
            "audio": Statistics(mean=(0.5,) * K, std=(2.0,) * K),
        },
        vocab_size=len(WORDS),
        preprocessing={"vocab": WORDS, "audio": {"feature": "mfcc"}},
    )
    return open_columns(folder)


def reader_of(columns, config=ALL, seed=7):
    reader = BatchReader(columns, "train", MODALITIES, ("one",), CPU)
    reader.augmenter = Augmenter(config, seed, columns.manifest, MODALITIES)
    return reader


def samples(reader, rows, epochs):
    """(epoch, row) -> the stored values of the augmented sample."""
    rows, epochs = np.array(rows), np.array(epochs)
    host = reader.gather(rows, None, epochs)
    found = {}
    for place, key in enumerate(zip(epochs.tolist(), rows.tolist(), strict=True)):
        text = np.zeros(T, np.int64)
        tokens = host.columns["text"][place].numpy()
        text[: len(tokens)] = tokens
        parts = [text.tobytes()]
        parts += [host.columns[name][place].numpy().tobytes() for name in ("image", "audio")]
        found[key] = b"".join(parts)
    reader.give_back(host)
    return found


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, N - 1)), min_size=1, max_size=9),
    st.integers(1, 9),
)
def test_a_sample_does_not_depend_on_its_batch(columns, wanted, size):
    """The same bytes in any batch, at any place, after any other batch."""
    reader = reader_of(columns)
    for first in range(0, len(wanted), size):
        part = wanted[first : first + size]
        together = samples(reader, [row for _, row in part], [epoch for epoch, _ in part])
        for epoch, row in part:
            alone = samples(reader_of(columns), [row], [epoch])
            assert together[epoch, row] == alone[epoch, row]


def test_seed_epoch_and_sample_change_it(columns):
    reader, rows = reader_of(columns), list(range(N))
    first, second = samples(reader, rows, [0] * N), samples(reader, rows, [1] * N)
    other = samples(reader_of(columns, seed=8), rows, [0] * N)
    assert all(first[0, row] != second[1, row] for row in rows)
    assert all(first[0, row] != other[0, row] for row in rows)


@pytest.mark.parametrize(("world_size", "micro"), [(1, 6), (2, 3), (2, 1), (3, 2)])
def test_ranks_see_the_same_samples(columns, world_size, micro):
    """Over two epochs, with any number of ranks and any micro-batch."""
    expected, found = {}, {}
    for result, size, width in ((expected, 1, 6), (found, world_size, micro)):
        for rank in range(size):
            batches = TrainBatches(
                reader_of(columns),
                **{"seed": 7, "steps": 8, "global_batch_size": 6, "micro_batch_size": width},
                **{"rank": rank, "world_size": size},
            )
            with batches:
                for step in range(8):
                    for batch in batches.of_step(step):
                        for place, row in enumerate(batch.rows.tolist()):
                            image = batch.inputs["image"][place]
                            audio = batch.inputs["audio"][place]
                            key = step * 6 // N, row
                            assert key not in result
                            result[key] = image.numpy().tobytes() + audio.numpy().tobytes()
    assert len(expected) == 2 * N
    assert found == expected


def test_evaluation_is_not_augmented(columns):
    """Without epochs the reader gives stored values."""
    reader = reader_of(columns)
    host = reader.gather(np.arange(N))
    stored = columns.split("train")
    np.testing.assert_array_equal(host.columns["image"].numpy(), stored["image"])
    np.testing.assert_array_equal(host.columns["audio"].numpy(), stored["audio"])


def test_streams_are_independent():
    rows, epochs = np.arange(500), np.zeros(500, np.int64)
    a, b = (uniform(1, epochs, rows, stream, 3) for stream in (Stream.IMAGE, Stream.TOKENS))
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.1
    assert abs(a.mean() - 0.5) < 0.03
    own = np.random.Generator(np.random.Philox(key=[1, 0], counter=[0, Stream.IMAGE, 17, 0]))
    np.testing.assert_array_equal(a[17], own.random(3))


# --- texts ---


def test_token_dropout_leaves_special_tokens(columns):
    reader = reader_of(columns, AugmentConfig.model_validate({"text": {"token_dropout": 0.4}}))
    rows = np.tile(np.arange(N), 20)
    host = reader.gather(rows, None, np.repeat(np.arange(20), N))
    stored, found = columns.split("train")["text"][rows], host.columns["text"].numpy()
    stored = stored[:, : found.shape[1]]
    changed = stored != found
    assert (found[changed] == 1).all()  # [UNK]
    assert not changed[stored < 4].any()
    share = changed.sum() / (stored >= 4).sum()
    assert abs(share - 0.4) < 0.03


def test_mask_tokens_are_preferred(columns):
    manifest = columns.manifest.model_copy(
        update={"special_tokens": {"[PAD]": 0, "[UNK]": 1, "[MASK]": 43}, "preprocessing": {}}
    )
    config = AugmentConfig.model_validate({"text": {"token_dropout": 0.99}})
    augmenter = Augmenter(config, 0, manifest, ("text",))
    tokens = np.full((1, 30), 5, np.int16)
    rows = np.array([0])
    augmenter.apply({"text": tokens}, augmenter.draw(rows, rows), is_cropped=False)
    assert (tokens == 43).sum() > 20


# --- sounds ---


def test_masks_stay_within_valid_frames():
    """Widths are uniform from 0 to the largest, and no frame after the end is hidden."""
    config = AudioAugmentation(time_mask=4, frequency_mask=2)
    count = 4000
    drawn = np.random.default_rng(0).random((count, 4))
    lengths = np.random.default_rng(1).integers(1, F + 1, count)
    hidden = masks(drawn, lengths, (K, F), config)
    assert not hidden[np.broadcast_to(np.arange(F) >= lengths[:, None, None], hidden.shape)].any()
    time = masks(drawn, np.full(count, F), (K, F), AudioAugmentation(time_mask=4))
    widths = time.all(1).sum(1)
    assert np.bincount(widths, minlength=5).min() > 0.17 * count
    starts = time.all(1).argmax(1)[widths == 4]
    assert set(starts) == set(range(F - 4 + 1))
    rows = masks(drawn, np.full(count, F), (K, F), AudioAugmentation(frequency_mask=2)).all(2)
    assert set(rows.sum(1)) == {0, 1, 2}


def test_a_fraction_limits_time_masks():
    config = AudioAugmentation(time_mask=100, time_mask_fraction=0.25)
    drawn = np.random.default_rng(0).random((500, 4))
    hidden = masks(drawn, np.full(500, 12), (K, F), config)
    assert set(hidden.all(1).sum(1)) == {0, 1, 2, 3}


def test_hidden_values_are_the_mean(columns):
    config = AugmentConfig.model_validate({"audio": {"time_mask": 9, "time_masks": 3}})
    host = reader_of(columns, config).gather(np.arange(N), None, np.zeros(N, np.int64))
    stored, found = columns.split("train")["audio"], host.columns["audio"].numpy()
    changed = stored != found
    assert changed.any()
    assert (found[changed] == np.float16(0.5)).all()


def test_gain_is_that_of_the_waveform():
    """A waveform that is 6 dB louder has features that differ by the gain vector."""
    from furnace_hpc.data.decode.features import log_mel, mfcc

    wave = np.random.default_rng(0).normal(0, 0.1, (1, 8000)).astype(np.float32)
    louder = wave * np.float32(10 ** (6 / 20))
    settings = {"sample_rate": 16_000, "num_coefficients": 20, "hop": 160, "window": 1024}
    for name, function in (("mfcc", mfcc), ("log_mel", log_mel)):
        change = function(louder, **settings)[0] - function(wave, **settings)[0]
        expected = 6 * gain_vector(name, 20)[:, None]
        np.testing.assert_allclose(change, np.broadcast_to(expected, change.shape), atol=2e-3)


def test_gain_and_noise_leave_padding(columns):
    config = AugmentConfig.model_validate({"audio": {"gain_db": 3, "noise": 0.5}})
    host = reader_of(columns, config).gather(np.arange(N), None, np.zeros(N, np.int64))
    stored, found = columns.split("train"), host.columns["audio"].numpy()
    valid = np.arange(F) < stored["audio_length"][:, None]
    difference = (found - stored["audio"].astype(np.float32)).transpose(0, 2, 1)
    assert not difference[~valid].any()
    noise = difference[valid][:, 1:]  # coefficients without the gain
    assert abs(noise.std() - 0.5 * 2.0) < 0.06
    gain = difference[valid][:, 0].std()
    assert gain > 10  # up to 3 dB times sqrt(128)


# --- images ---


def test_crops_have_the_wanted_areas():
    drawn = np.random.default_rng(0).random((3000, 8))
    boxes = np.array(boxes_of(drawn, 0.25))
    left, top, width, height = boxes.T
    area, ratio = width * height, width / height
    assert (left >= 0).all()
    assert (left + width <= 1 + 1e-12).all()
    assert (top + height <= 1 + 1e-12).all()
    np.testing.assert_allclose(area, 0.25 + 0.75 * drawn[:, 1])
    assert ratio.min() > 0.75 - 1e-9
    assert ratio.max() < 4 / 3 + 1e-9
    assert ratio[area < 0.5].min() < 0.78


def interpolated(values: np.ndarray, start: float, size: float) -> np.ndarray:
    """Linear interpolation along the last axis: 8 points of a part, constant at the borders."""
    places = start + (np.arange(8) + 0.5) * size / 8 - 0.5
    return np.apply_along_axis(lambda line: np.interp(places, np.arange(8), line), -1, values)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_is_interpolated_linearly(channels):
    """The box of half the width and a quarter of the height, enlarged to the whole size."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1, channels, 8, 8), np.uint8)
    rows = interpolated(pixels[0].astype(float), 3.5, 4)
    expected = interpolated(rows.swapaxes(1, 2), 2, 2).swapaxes(1, 2)
    for dtype, tolerance in ((np.uint8, 1.01), (np.float32, 1e-4), (np.float16, 0.1)):
        found = pixels.astype(dtype)
        crop(found, [(3.5 / 8, 0.25, 0.5, 0.25)])
        np.testing.assert_allclose(found[0].astype(float), expected, atol=tolerance)


def test_flips_exchange_left_and_right():
    pixels = np.arange(2 * 3 * 2 * 4, dtype=np.uint8).reshape(2, 3, 2, 4)
    found = pixels.copy()
    flip(found, np.array([[0.4] + [0.0] * 7, [0.6] + [0.0] * 7]), 0.5)
    np.testing.assert_array_equal(found[0], pixels[0, :, :, ::-1])
    np.testing.assert_array_equal(found[1], pixels[1])


def test_colours_change_by_the_drawn_factors():
    """Each factor alone: brightness, contrast about the mean grey, saturation about the grey."""
    pixels = np.random.default_rng(0).integers(60, 160, (1, 3, 6, 6), np.uint8)
    grey = (pixels[0] * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    neutral = np.full((1, 8), 0.5)
    for place, expected in (
        (5, 1.2 * pixels[0]),
        (6, grey.mean() + 1.2 * (pixels[0] - grey.mean())),
        (7, grey + 1.2 * (pixels[0] - grey)),
    ):
        drawn = neutral.copy()
        drawn[0, place] = 1.0
        found = pixels.copy()
        change_colours(found, drawn, 0.2)
        np.testing.assert_allclose(found[0], expected, atol=0.51)


# --- what is refused ---


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({"image": {"flip": 0.5}}, {"modalities": ("text",)}, "augment.image is set"),
        ({"audio": {"gain_db": 3}}, {"preprocessing": {}}, "names neither"),
        ({"text": {"token_dropout": 0.1}}, {"preprocessing": {}}, "special tokens"),
        ({"image": {"colour": 0.1}}, {"dtype": "float32"}, "images of 8 bits"),
        ({"image": {"crop": 0.5}}, {"dtype": "int16"}, "augment.image.crop"),
    ],
)
def test_a_set_that_does_not_allow_it(columns, config, changes, message):
    manifest, modalities = columns.manifest, changes.pop("modalities", MODALITIES)
    if dtype := changes.pop("dtype", None):
        image = manifest.columns["image"].model_copy(update={"dtype": dtype})
        changes = {"columns": manifest.columns | {"image": image}}
    manifest = manifest.model_copy(update=changes)
    with pytest.raises(ConfigError, match=message):
        check_augmentation(AugmentConfig.model_validate(config), modalities, manifest)


def test_special_tokens_of_words(columns):
    found = special_tokens(columns.manifest)
    assert found == {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}


def test_a_default_section_is_off():
    assert AugmentConfig().modalities == ()
    assert AugmentConfig(image=ImageAugmentation(crop=0.9)).modalities == ("image",)
    assert AugmentConfig(audio=AudioAugmentation(time_masks=2)).modalities == ()
