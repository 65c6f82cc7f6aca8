"""TriDigits and the pack command: real packs, small ones."""

import json
import os
import sys
from pathlib import Path

import forked_commands
import numpy as np
import pytest

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.sets.tridigits.pack import pack, pack_once
from furnace_hpc.data.sets.tridigits.plan import (
    CLUES,
    MAX_TOKENS,
    VOCAB,
    TriDigitsKnobs,
    encode,
    make_plan,
)
from furnace_hpc.data.sets.tridigits.render import coloured_noise
from furnace_hpc.data.sets.tridigits.speech import (
    draw_requests,
    synthesise,
)
from furnace_hpc.pack import main, mmimdb, tridigits

SMALL = {"train": 60, "val": 20, "test": 20, "speech": "bank"}


def ignore(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total, what


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "tridigits"
    pack(TriDigitsKnobs(**SMALL), folder, ignore, workers=2)
    return folder


def test_values_types_and_ranges(packed):
    columns = open_columns(packed, verify=True)
    manifest, train = columns.manifest, columns.split("train")
    stored = {name: (column.dtype, column.shape) for name, column in manifest.columns.items()}
    assert stored == {
        "sample_id": ("int32", ()),
        "image": ("uint8", (1, 32, 32)),
        "audio": ("float16", (40, 40)),
        "audio_length": ("int16", ()),
        "text": ("int16", (MAX_TOKENS,)),
        "text_length": ("int16", ()),
        "present": ("uint8", (3,)),
        "label.digit": ("int16", ()),
        "label.parity": ("int16", ()),
        "label.accent": ("int16", ()),
    }
    assert np.isfinite(train["audio"]).all()
    assert 60 < train["image"].mean() < 130  # black is 85
    assert (train["audio_length"] == 40).all()
    assert (train["present"] == 1).all()
    assert train["text"].max() < manifest.vocab_size == len(VOCAB)
    for tokens, length in zip(train["text"], train["text_length"], strict=True):
        assert tokens[0] == VOCAB.index("[CLS]")
        assert tokens[length - 1] == VOCAB.index("[SEP]")
        assert (tokens[:length] > 0).all()
        assert (tokens[length:] == manifest.pad_id).all()
    statistics = manifest.statistics["audio"]
    np.testing.assert_allclose(
        statistics.mean, train["audio"].astype(np.float64).mean((0, 2)), rtol=1e-6
    )
    ids = np.concatenate([columns.split(split)["sample_id"] for split in manifest.splits])
    assert ids.tolist() == list(range(100))
    assert manifest.preprocessing["vocab"][:4] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    assert manifest.modalities == ("text", "image", "audio")


def test_labels_fit_together(packed):
    for split in ("train", "val", "test"):
        columns = open_columns(packed).split(split)
        np.testing.assert_array_equal(columns["label.parity"], columns["label.digit"] % 2)
        assert columns["label.digit"].min() >= 0
        assert columns["label.digit"].max() <= 9
        assert set(np.unique(columns["label.accent"])) == {0, 1, 2}


def test_splits_share_no_image_voice_or_phrase():
    plans = make_plan(TriDigitsKnobs(), np.random.default_rng(0))
    for field in ("image", "voice", "phrase", "sample_id"):
        train, val, test = (set(getattr(plans[split], field)) for split in ("train", "val", "test"))
        assert not (train & val) | (train & test) | (val & test), field
    assert len(set(plans["val"].voice)) == len(set(plans["test"].voice)) == 20
    assert len(set(plans["train"].voice)) == 43
    assert [len(plans[split].text) for split in plans] == [4000, 1000, 2000]


def test_a_tenth_of_the_clues_is_random():
    """Every tenth clue is of a random digit, and false for 4.8 of 10 digits on average."""
    plan = make_plan(TriDigitsKnobs(), np.random.default_rng(0))["train"]
    honest = make_plan(TriDigitsKnobs(false_clue=0), np.random.default_rng(0))["train"]
    assert 0.03 < false_rate(plan) < 0.07
    assert false_rate(honest) == 0.0
    assert all(" and " in text for text in plan.text)


def false_rate(plan) -> float:
    words = {
        text: (kind, truth)
        for kind, clue in enumerate(CLUES)
        for truth, text in enumerate(clue[:2])
    }
    false = []
    for phrase, text, digit in zip(plan.phrase, plan.text, plan.labels["digit"], strict=True):
        before, after = phrase.split("{}")
        for clue in text.removeprefix(before).removesuffix(after).split(" and "):
            kind, truth = words[clue]
            false.append((digit in CLUES[kind][2]) != bool(truth))
    return float(np.mean(false))


def test_words_of_held_out_phrases_are_unknown():
    unknown = VOCAB.index("[UNK]")
    assert encode("the sign says even") == [
        2,
        VOCAB.index("the"),
        unknown,
        unknown,
        VOCAB.index("even"),
        3,
    ]


def test_the_same_knobs_make_the_same_columns(packed, tmp_path):
    first = open_columns(packed).manifest
    again = pack(TriDigitsKnobs(**SMALL), tmp_path / "again", ignore, workers=1)
    assert again.fingerprint == first.fingerprint
    other = pack(TriDigitsKnobs(**SMALL, seed=1), tmp_path / "other", ignore)
    assert other.fingerprint != first.fingerprint


def test_espeak_is_reproducible():
    pytest.importorskip("espeakng_loader")
    requests = draw_requests(np.random.SeedSequence(0))[:60]
    # one of six voices with noise of their own
    assert "Alicia" in {request.voice for request in requests}
    for first, again in zip(synthesise(requests), synthesise(requests), strict=True):
        np.testing.assert_array_equal(first.waveform, again.waveform)


@pytest.mark.slow
def test_a_pack_records_espeak(tmp_path):
    pytest.importorskip("espeakng_loader")
    knobs = TriDigitsKnobs(train=4, val=2, test=2, speech="espeak")
    manifest = pack(knobs, tmp_path / "set", ignore)
    assert manifest.versions["espeak"].startswith("1.")
    assert manifest.preprocessing["speech_source"] == "espeak"
    assert pack_once(knobs, tmp_path / "set", ignore) == (manifest, False)
    with pytest.raises(ConfigError, match="with other settings"):
        pack_once(TriDigitsKnobs(train=4, val=2, test=2), tmp_path / "set", ignore)


def test_a_pack_is_made_once_and_again_if_damaged(packed, tmp_path):
    knobs = TriDigitsKnobs(**{**SMALL, "train": 4, "val": 2, "test": 2})
    manifest, packed_now = pack_once(knobs, tmp_path / "set", ignore)
    assert packed_now
    assert pack_once(knobs, tmp_path / "set", ignore) == (manifest, False)
    with pytest.raises(ConfigError, match=r"with other settings: choose another --out, or"):
        pack_once(TriDigitsKnobs(**SMALL), tmp_path / "set", ignore)
    (tmp_path / "set" / "val" / "image.npy").unlink()
    fixed, packed_now = pack_once(knobs, tmp_path / "set", ignore)
    assert packed_now
    assert fixed.fingerprint == manifest.fingerprint


def test_pack_once_refuses_another_set_in_its_place(packed):
    with pytest.raises(ConfigError, match=r"holds tridigits .* with other settings"):
        pack_once(TriDigitsKnobs(), packed.parent / "tridigits", ignore)


def test_xor_labels_and_their_own_defaults(tmp_path):
    knobs = TriDigitsKnobs(variant="xor", speech="bank", train=60, val=20, test=20)
    assert (knobs.snr_db, knobs.image_noise, knobs.occlusion) == (10.0, 0.1, 0.0)
    assert TriDigitsKnobs(variant="xor", snr_db=-3).snr_db == -3.0
    manifest = pack(knobs, tmp_path / "xor", ignore)
    train = open_columns(tmp_path / "xor").split("train")
    np.testing.assert_array_equal(
        train["label.xor"], train["label.image_digit"] ^ train["label.audio_digit"]
    )
    assert set(manifest.labels) == {"xor", "image_digit", "audio_digit"}
    pairs = set(
        zip(train["label.image_digit"].tolist(), train["label.audio_digit"].tolist(), strict=True)
    )
    assert pairs == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert len(np.unique(train["text"], axis=0)) == 1


def test_coloured_noise_has_the_wanted_power_law():
    noise = coloured_noise(np.random.default_rng(0), 1.0)
    assert noise.std() == pytest.approx(1.0, abs=1e-3)
    power = np.abs(np.fft.rfft(noise)) ** 2
    low, high = power[100:200].mean(), power[1000:2000].mean()
    assert low / high == pytest.approx(10.0, rel=0.4)


@pytest.mark.parametrize("variant", ["redundant", "unique"])
def test_the_rule_of_each_variant_is_kept(tmp_path, variant):
    """Redundant: image and sound both have the whole label. Unique: only the image has it."""
    knobs = TriDigitsKnobs(variant=variant, speech="bank", train=400, val=2, test=150)
    assert (knobs.snr_db, knobs.image_noise, knobs.occlusion) == (10.0, 0.1, 0.0)
    manifest = pack(knobs, tmp_path / "set", ignore)
    train, test = (open_columns(tmp_path / "set").split(split) for split in ("train", "test"))
    assert len(np.unique(train["text"], axis=0)) == 1
    assert manifest.labels["digit"].classes == tuple("0123456789")
    assert seen_by(train, test, "image", "digit") > 0.3
    if variant == "redundant":
        assert seen_by(train, test, "audio", "digit") > 0.3
    else:
        assert seen_by(train, test, "audio", "digit") < 0.25
        assert seen_by(train, test, "audio", "distractor") > 0.3


def seen_by(train, test, modality: str, label: str) -> float:
    """Accuracy of a linear model of one modality on digits. Chance is 0.1."""
    from sklearn.linear_model import RidgeClassifier

    features = []
    for part in (train, test):
        values = part[modality].astype(np.float32)
        if modality == "audio":
            features.append(values[:, 1:20].mean(2))
        else:
            features.append(
                values[:, 0].reshape(-1, 16, 2, 16, 2).mean((2, 4)).reshape(len(values), -1)
            )
    mean, std = features[0].mean(0), features[0].std(0) + 1e-6
    model = RidgeClassifier(alpha=100).fit((features[0] - mean) / std, train[f"label.{label}"])
    return float(model.score((features[1] - mean) / std, test[f"label.{label}"]))


@pytest.mark.slow
def test_pack_command(tmp_path, capsys):
    out, small = tmp_path / "tridigits", {"speech": "bank", "val": 2, "test": 2, "train": 4}
    options = [text for name, value in small.items() for text in (f"--{name}", str(value))]
    assert "packed into" in run(0, "tridigits", "--out", str(out), *options)
    fingerprint = json.loads((out / "manifest.json").read_text())["fingerprint"]
    tridigits(out, **small, verify=True)
    said = capsys.readouterr().out
    assert "nothing done" in said
    assert fingerprint in said
    assert "verified: 30 files have the hashes in the manifest" in said
    with pytest.raises(ConfigError, match="choose another --out, or replace it with --force"):
        tridigits(out, **small, seed=5)
    tridigits(out, **small, seed=5, force=True)
    assert json.loads((out / "manifest.json").read_text())["fingerprint"] != fingerprint


def test_wrong_options_are_named(tmp_path, capsys):
    with pytest.raises(
        ConfigError, match="--train is 0: input should be greater than or equal to 1"
    ):
        tridigits(tmp_path, train=0)
    with pytest.raises(ConfigError, match="--image-size is 3: input should be"):
        mmimdb(tmp_path, tmp_path, image_size=3)
    with pytest.raises(ConfigError, match="--plot is 'last'; valid: first, joined, longest"):
        mmimdb(tmp_path, tmp_path, plot="last")
    with pytest.raises(ConfigError, match=r"split\.json is missing: check --source"):
        mmimdb(tmp_path, tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_command(main, ["tridigit", "--out", "x"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: unknown data set 'tridigit'; did you mean 'tridigits'? "
        "(valid: audioset, avmnist, mmimdb, table, tridigits)\n"
    )


def run(code: int, *arguments: str) -> str:
    command = [sys.executable, "-m", "furnace_hpc.pack", *arguments]
    child = forked_commands.run(command, env=os.environ | {"COLUMNS": "500"})
    assert child.returncode == code, child.stderr
    assert "Traceback" not in child.stderr
    return child.stdout + child.stderr
