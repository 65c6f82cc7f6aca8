"""AudioSet from the official CSVs and from CAV-MAE's JSON."""

import json
from dataclasses import replace

import numpy as np
import pytest
from audioset_study import CSV, JSON, KNOBS
from raw_sets import (
    CLIPS,
    EIGHT_BIT,
    FEW_FRAMES,
    GONE,
    MIDS,
    NAMES,
    NO_SOUND,
    NUM_TRAIN,
    SILENT,
    STEREO,
    TRUNCATED,
    labels_of,
    marked,
    marker_of,
    tone,
    write_audioset,
)

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.decode.features import mfcc
from furnace_hpc.data.packing.pack import pack_files
from furnace_hpc.data.sets.audioset import Lists, plan_audioset
from furnace_hpc.data.sets.audioset_files import SoundFiles
from furnace_hpc.data.sets.audioset_lists import NUM_CLASSES, read_classes, read_clips


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_audioset(tmp_path_factory.mktemp("sets") / "audioset")


def plan(source, lists=CSV, knobs=KNOBS):
    return plan_audioset(source, lists, source / "audio", source / "frames", knobs)


@pytest.fixture(scope="module")
def columns(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("packs") / "set"
    pack_files(plan(source), out, lambda *_: None, workers=1, max_refused=0.5, force=False)
    return open_columns(out, verify=True)


def rows(columns):
    """(split, row, number of the clip) of every packed clip."""
    for split in columns.manifest.splits:
        for row, clip in enumerate(columns.split(split)["source_id"]):
            yield split, row, CLIPS.index(clip.decode())


def test_every_clip_has_its_own_modalities(columns):
    manifest = columns.manifest
    assert manifest.image_frames == 10
    assert manifest.labels["classes"].classes == tuple(NAMES)
    packed = {number for _, _, number in rows(columns)}
    assert packed == set(range(16)) - {GONE}
    for split, row, number in rows(columns):
        sample = {name: array[row] for name, array in columns.split(split).items()}
        assert (number >= NUM_TRAIN) == (split == "test")
        assert {MIDS[index] for index in np.flatnonzero(sample["label.classes"])} == set(
            labels_of(number)
        )
        assert sample["image"].shape == (10, 3, 16, 16)
        # absent frames: their neighbours
        assert {marker_of(frame) for frame in sample["image"]} == {number}
        assert sample["present"].tolist() == [1, int(number not in (NO_SOUND, TRUNCATED))]
        if sample["present"][1] and number not in (SILENT, EIGHT_BIT):
            wave = tone(number, 16_000).astype(np.float32)  # stereo and 44.1 kHz too
            wanted = mfcc(wave[None], sample_rate=16_000, hop=256, window=1024)[0]
            assert sample["audio_length"] == wanted.shape[1] == 63
            inner = slice(4, 59)  # at the ends a resampled tone rings
            assert np.abs(sample["audio"][:, inner] - wanted[:, inner]).max() < (
                1.0 if number != 2 else 25
            )
            assert nearest_tone(sample["audio"][:, inner]) == number
        assert not sample["audio"][:, sample["audio_length"] :].any()


def nearest_tone(coefficients) -> int:
    waves = np.stack([tone(number, 16_000) for number in range(16)]).astype(np.float32)
    wanted = mfcc(waves, sample_rate=16_000, hop=256, window=1024)[:, 1:13, 4:59].mean(2)
    return int(((wanted - coefficients[1:13].mean(1)) ** 2).sum(1).argmin())


def test_unreadable_files_are_listed(columns):
    lines = [
        json.loads(line) for line in (columns.folder / "refused.jsonl").read_text().splitlines()
    ]
    found = {(CLIPS.index(line["sample"]), line["modality"], line["reason"]) for line in lines}
    assert found == {
        (FEW_FRAMES, "image", "missing"),
        (NO_SOUND, "audio", "missing"),
        (TRUNCATED, "audio", "truncated"),
    }
    assert all(line["kept"] for line in lines)
    counts = columns.manifest.counts
    assert sum(count["listed"] for count in counts.values()) == 16
    assert sum(count["found"] for count in counts.values()) == 15
    assert sum(count["incomplete"] for count in counts.values()) == 3


def test_csv_and_json_agree(source, columns, tmp_path):
    other = plan(source, JSON)
    mine = plan(source)
    assert other.settings == mine.settings
    assert {s: list(r) for s, r in other.rows.items()} == {s: list(r) for s, r in mine.rows.items()}
    manifest, _ = pack_files(
        other, tmp_path / "set", lambda *_: None, workers=1, max_refused=0.5, force=False
    )
    assert manifest.fingerprint == columns.manifest.fingerprint


def test_balanced_sampling_weights(columns):
    counts = columns.split("train")["label.classes"].sum(0, dtype=int)
    for split in columns.manifest.splits:
        for labels, weight in zip(
            *(columns.split(split)[n] for n in ("label.classes", "sampling_weight")), strict=True
        ):
            assert weight == pytest.approx(
                sum(1000 / (counts[index] + 0.01) for index in np.flatnonzero(labels))
            )


def test_validation_clips_are_drawn_by_their_id(source):
    few, many = (plan(source, knobs=replace(KNOBS, val_fraction=part)).rows for part in (0.2, 0.5))
    names = {split: [clip.video_id for clip in clips] for split, clips in few.items()}
    assert set(names["val"]) < {clip.video_id for clip in many["val"]}
    assert not set(names["val"]) & set(names["train"])
    assert names["test"] == CLIPS[NUM_TRAIN:]
    assert "--aE2O5G5WE" in names["train"] + names["val"]
    given = plan(source, Lists(CSV.train, "unbalanced_train_segments.csv", CSV.test))
    assert given.listed == {"train": NUM_TRAIN, "val": 0, "test": 16 - NUM_TRAIN}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            'abc, 0.0, 10.0, "/m/0a,/m/nowhere"',
            r"line 16 \(abc\): label '/m/nowhere' is not in class_labels",
        ),
        ('--aE2O5G5WE, 0.0, 10.0, "/m/0a"', "clip '--aE2O5G5WE' is listed twice: keep one row"),
        (
            f'{CLIPS[-1]}, 0.0, 10.0, "/m/0a"',
            rf"sample '{CLIPS[-1]}' is in train and in test: remove one of them",
        ),
        ("abc, 0.0, 10.0", "line 16 has 3 fields, wanted YTID, start, end, labels"),
        ('abc, 10.0, 0.0, "/m/0a"', "the segment ends at 0.0 s, before it starts at 10.0 s"),
        ('abc, now, 0.0, "/m/0a"', "'now' and '0.0' are not numbers of seconds"),
    ],
)
def test_a_wrong_row_is_an_error(source, tmp_path, row, message):
    for name in ("class_labels_indices.csv", "eval_segments.csv"):
        (tmp_path / name).write_text((source / name).read_text())
    (tmp_path / CSV.train).write_text((source / CSV.train).read_text() + row + "\n")
    knobs = replace(KNOBS, val_fraction=1e-9)
    with pytest.raises(ConfigError, match=message):
        plan_audioset(tmp_path, CSV, source / "audio", source / "frames", knobs)


def test_the_ontology_has_every_class(source, tmp_path):
    path = tmp_path / "class_labels_indices.csv"
    path.write_text((source / path.name).read_text() + '8,/m/other,"Other, unknown"\n')
    assert read_classes(path, tmp_path / "ontology.json", 9).names[1::7] == (
        "Male speech, man speaking",
        "Other, unknown",
    )
    with pytest.raises(
        ConfigError,
        match=r"mid '/m/other' is not in .*ontology\.json: use files of the same version",
    ):
        read_classes(path, source / "ontology.json", 9)
    path.write_text("index,mid,display_name\n1,/m/0a,Speech\n")
    with pytest.raises(ConfigError, match="line 2 is .* wanted index 0"):
        read_classes(path, source / "ontology.json", 1)


def test_a_class_list_with_a_wrong_number_of_rows(source, tmp_path):
    """Published scores use all 527 classes. An own choice of classes needs --num-classes."""
    path = source / "class_labels_indices.csv"
    with pytest.raises(
        ConfigError,
        match=r"class_labels_indices\.csv lists 8 classes, wanted 527: .* --num-classes 8",
    ):
        plan(source, knobs=replace(KNOBS, num_classes=NUM_CLASSES))
    short = tmp_path / path.name
    short.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match="lists 7 classes, wanted 8"):
        read_classes(short, source / "ontology.json", 8)


def test_ids_longer_than_youtubes_are_kept_whole(source, tmp_path):
    """VGGSound and others use this layout with ids that contain the start of the clip."""
    for name in ("class_labels_indices.csv", "ontology.json"):
        (tmp_path / name).write_text((source / name).read_text())
    clips = [f"{clip}_{30_000 + n}" for n, clip in enumerate(CLIPS)]
    (tmp_path / "frames" / "frame_0").mkdir(parents=True)
    for clip in clips:
        marked(1, 16, 16).save(tmp_path / "frames" / "frame_0" / f"{clip}.jpg")
    for name, part in (("train", clips[:8]), ("val", clips[8:12]), ("test", clips[12:])):
        entries = [{"video_id": clip, "labels": MIDS[0]} for clip in part]
        (tmp_path / f"{name}.json").write_text(json.dumps({"data": entries}))
    other = plan(
        tmp_path, Lists("train.json", "val.json", "test.json"), replace(KNOBS, num_frames=1)
    )
    pack_files(other, tmp_path / "set", lambda *_: None, workers=1, max_refused=1, force=False)
    packed = open_columns(tmp_path / "set", verify=True)
    assert [
        row.decode() for split in packed.manifest.splits for row in packed.split(split)["source_id"]
    ] == clips


def test_which_of_several_sound_files_is_used(source, tmp_path):
    """An existing path in the list comes first, then a lossless file."""
    for name in ("x.wav", "x.flac", "x.txt", "y.mp3"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "list.json").write_text(
        json.dumps({"data": [{"video_id": name, "labels": "/m/0a"} for name in "xyz"]})
    )
    classes = read_classes(source / "class_labels_indices.csv", source / "none.json", len(MIDS))
    sounds = SoundFiles(tmp_path)
    found = read_clips(tmp_path / "list.json", classes, sounds, tmp_path)
    assert [clip.sound and clip.sound.name for clip in found] == ["x.flac", "y.mp3", None]
    entry = {
        "video_id": "x",
        "labels": "/m/0a",
        "wav": str(tmp_path / "y.mp3"),
        "video_path": "/nowhere",
    }
    (tmp_path / "list.json").write_text(json.dumps({"data": [entry]}))
    (clip,) = read_clips(tmp_path / "list.json", classes, sounds, tmp_path)
    assert clip.sound == tmp_path / "y.mp3"
    assert clip.frames == tmp_path


def test_no_file_at_all_is_an_error(source, tmp_path):
    with pytest.raises(ConfigError, match=r"has a file in .* or .*: check --audio and --frames"):
        plan_audioset(source, CSV, tmp_path, tmp_path, KNOBS)


def test_markers_of_the_fixture_differ(tmp_path):
    for number in (0, STEREO, 15):
        assert marker_of(np.asarray(marked(number))) == number
