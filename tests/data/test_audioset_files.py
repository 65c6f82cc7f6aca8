"""AudioSet: file names of download programs, lists of other programs, and small sets."""

import json
from dataclasses import replace

import pytest
import soundfile
from audioset_study import CSV, KNOBS
from hypothesis import given
from hypothesis import strategies as st
from raw_sets import CLIPS, MIDS, marked, tone, write_audioset

from furnace_hpc import pack
from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.packing.held_out import drawn_by_hash, num_held_out
from furnace_hpc.data.packing.pack import pack_files
from furnace_hpc.data.sets.audioset import Lists, plan_audioset
from furnace_hpc.data.sets.audioset_files import SoundFiles
from furnace_hpc.data.sets.audioset_lists import Classes, read_clips
from furnace_hpc.data.sets.avmnist import PUBLISHED_TRAIN, PUBLISHED_VAL

CLASSES = Classes(tuple(MIDS), tuple(MIDS))
IDS = ["--aE2O5G5WE", "-0RWZT-miFs", "Y_x9Kq2ab_c", "Ab_123_4567", "abcdefghijk"]


def rows(ids, labels="/m/0a"):
    return "".join(f'{clip}, 30.000, 40.000, "{labels}"\n' for clip in ids)


def read(path, folder):
    return read_clips(path, CLASSES, SoundFiles(folder / "audio"), folder)


def found(tmp_path, names, *, ids=IDS, text=None):
    """Id -> name of the sound file that is used."""
    (tmp_path / "audio").mkdir()
    for name in names:
        (tmp_path / "audio" / name).write_bytes(b"")
    (tmp_path / "list.csv").write_bytes(rows(ids).encode() if text is None else text)
    clips = read(tmp_path / "list.csv", tmp_path)
    assert [clip.video_id for clip in clips] == list(ids)
    return {clip.video_id: clip.sound and clip.sound.name for clip in clips}


@pytest.mark.parametrize(
    "form",
    [
        "{}.wav", "{}.WAV", "{}.Flac", "{}.opus", "{}.m4a", "Y{}.wav", "{}_30.000_40.000.wav",
        "{}_30000_40000.mp3", "{}_30_40.ogg", "{}_30.0.wav", "Y{}_30.000_40.000.wav",
        "Y{}_30000_40000.flac", "{}_000030.wav", "A title - [live] [{}].wav", "{}.AIFF", "{}.w64",
    ],
)  # fmt: skip
def test_files_are_found_by_their_usual_names(tmp_path, form):
    assert found(tmp_path, map(form.format, IDS)) == {clip: form.format(clip) for clip in IDS}


def test_another_part_of_the_video_is_another_clip(tmp_path):
    names = [
        "abcdefghijk_0.000_10.000.wav",
        "abcdefghijk_30000_40000.wav",
        "--aE2O5G5WE_10_20.wav",
        "._-0RWZT-miFs.wav",
    ]
    taken = found(tmp_path, names)
    assert taken.pop("abcdefghijk") == "abcdefghijk_30000_40000.wav"
    assert set(taken.values()) == {None}
    (tmp_path / "list.json").write_text(
        json.dumps({"data": [{"video_id": "abcdefghijk", "labels": "/m/0a"}]})
    )
    with pytest.raises(
        ConfigError,
        match=r"may be 'abcdefghijk_0\.000_10\.000\.wav' and .*keep one, named <id>\.flac",
    ):
        read(tmp_path / "list.json", tmp_path)


def test_the_name_by_the_id_alone_comes_first(tmp_path):
    names = [
        "abcdefghijk.mp3",
        "Yabcdefghijk.flac",
        "--aE2O5G5WE.m4a",
        "--aE2O5G5WE.wav",
        "-0RWZT-miFs.ogg",
        "-0RWZT-miFs.FLAC",
    ]
    taken = found(tmp_path, names)
    assert list(taken.values()) == [
        "--aE2O5G5WE.wav",
        "-0RWZT-miFs.FLAC",
        None,
        None,
        "abcdefghijk.mp3",
    ]


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lists_of_other_programs(tmp_path, coding, newline):
    text = "# Segments csv\n# YTID, start_seconds\n" + rows(IDS).replace(', "', ' , "')
    content = text.replace("\n", newline).encode(coding)
    assert found(tmp_path, [f"{clip}.wav" for clip in IDS], text=content) == {
        clip: f"{clip}.wav" for clip in IDS
    }
    entries = {"data": [{"video_id": clip, "labels": "/m/0a"} for clip in IDS]}
    (tmp_path / "list.json").write_bytes(
        json.dumps(entries, indent=1).replace("\n", newline).encode(coding)
    )
    assert len(read(tmp_path / "list.json", tmp_path)) == len(IDS)


def test_class_list_with_a_byte_order_mark(tmp_path):
    source = write_audioset(tmp_path / "raw")
    for path in source.glob("*.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    plan = plan_audioset(source, CSV, source / "audio", source / "frames", KNOBS)
    assert sum(plan.listed.values()) == len(CLIPS)


@pytest.mark.parametrize("bad", ["", "a/b", "a\0b", "x" * 201, "x\ud83d"])
def test_an_id_that_is_no_file_name_is_refused(tmp_path, bad):
    (tmp_path / "list.json").write_text(
        json.dumps({"data": [{"video_id": bad, "labels": "/m/0a", "wav": bad}]})
    )
    with pytest.raises(ConfigError, match="is not a clip id"):
        read(tmp_path / "list.json", tmp_path)


def small_set(folder, num_train, form="{}.wav", content=None):
    """A set of one-second clips: `num_train` in train, three in test."""
    source = folder / "raw"
    (source / "audio").mkdir(parents=True)
    (source / "frames" / "frame_0").mkdir(parents=True)
    listing = "".join(f"{n},{mid},name {n}\n" for n, mid in enumerate(MIDS))
    (source / "class_labels_indices.csv").write_text("index,mid,display_name\n" + listing)
    ids = {
        name: [f"{name}_{n:06}" for n in range(count)]
        for name, count in (("train", num_train), ("test", 3))
    }
    for part, name in (("train", CSV.train), ("test", CSV.test)):
        (source / name).write_text(rows(ids[part]))
        for clip in ids[part]:
            path = source / "audio" / form.format(clip)
            soundfile.write(path, tone(3, 16_000), 16_000, format="WAV")
            if content is not None:
                path.write_bytes(content)
    return source, ids


def planned(source, **knobs):
    return plan_audioset(
        source, CSV, source / "audio", source / "frames", replace(KNOBS, num_frames=1, **knobs)
    )


@pytest.mark.parametrize(
    ("count", "part", "held"), [(7, 0.1, 1), (7, 0.5, 4), (2, 0.1, 1), (3, 0.9, 2), (40, 0.1, 4)]
)
def test_the_fraction_is_exact(tmp_path, count, part, held):
    source, ids = small_set(tmp_path, count)
    plan = planned(source, val_fraction=part)
    val = [clip.video_id for clip in plan.rows["val"]]
    assert len(val) == held
    assert sorted(val + [clip.video_id for clip in plan.rows["train"]]) == ids["train"]
    manifest, _ = pack_files(
        plan, tmp_path / "set", lambda *_: None, workers=1, max_refused=1, force=False
    )
    assert manifest.splits == {"train": count - held, "val": held, "test": 3}


def test_the_fraction_is_of_the_clips_with_files(tmp_path):
    """The official list has 22,000 clips, but a user may have files of a few."""
    source, ids = small_set(tmp_path, 7)
    (source / CSV.train).write_text(rows(ids["train"] + [f"gone_{n:06}" for n in range(500)]))
    plan = planned(source, val_fraction=0.1)
    assert {split: len(clips) for split, clips in plan.rows.items()} == {
        "train": 6,
        "val": 1,
        "test": 3,
    }
    assert plan.listed["train"] + plan.listed["val"] == 507
    assert plan.listed["val"] > 1  # those before the limit


def test_a_set_too_small_to_split(tmp_path):
    source, _ = small_set(tmp_path, 1)
    with pytest.raises(
        ConfigError, match=r"1 clip of train has files \('train_000000'\), wanted 2 at least"
    ):
        planned(source)


def test_an_empty_split_is_an_error(tmp_path):
    source, _ = small_set(tmp_path, 5)
    lists = Lists(CSV.train, "val.csv", CSV.test)
    for text, message in (
        (
            rows(["gone_000000"]),
            "split 'val' is empty: 1 samples are listed, and none of them has a file",
        ),
        ("# nothing\n", "split 'val' is empty: no sample is listed"),
    ):
        (source / "val.csv").write_text(text)
        plan = plan_audioset(source, lists, source / "audio", source / "frames", KNOBS)
        with pytest.raises(ConfigError, match=message):
            pack_files(
                plan, tmp_path / "set", lambda *_: None, workers=1, max_refused=1, force=False
            )


def test_a_split_without_usable_sample(tmp_path):
    source, _ = small_set(tmp_path, 5)
    plan = planned(source)
    plan.rows["val"][0].sound.write_bytes(b"no sound")
    with pytest.raises(ConfigError) as caught:
        pack_files(plan, tmp_path / "set", lambda *_: None, workers=1, max_refused=1, force=False)
    assert str(caught.value).startswith(
        "split 'val' has no usable sample "
        "(audio unreadable 1, image missing 1, sample nothing left 1)"
    )


def test_ids_before_the_limit_are_drawn():
    names = [f"clip {n}" for n in range(1000)]
    drawn = [drawn_by_hash(names, names, part) for part in (0.001, 0.1, 0.5)]
    assert [len(ids) for ids in drawn] == [1, 100, 500]
    assert drawn[0] < drawn[1] < drawn[2]
    fewer = drawn_by_hash(names, names[:500], 0.1)  # missing files move few clips
    assert len(fewer & set(names[:500])) == 50
    assert fewer <= drawn[1] or drawn[1] <= fewer
    assert drawn_by_hash(names, [], 0.5) == drawn_by_hash(names, names[:1], 0.5) == set()


def test_small_sets_keep_a_sample_on_each_side():
    share = PUBLISHED_VAL / PUBLISHED_TRAIN
    assert [num_held_out(total, share) for total in (0, 1, 2, 5, 60, 60_000)] == [
        0,
        0,
        1,
        1,
        5,
        5000,
    ]
    assert num_held_out(3, 0.99) == 2


def test_files_that_match_no_id_are_counted(tmp_path):
    source, _ = small_set(tmp_path, 9, form="clip-{}.wav")
    with pytest.raises(
        ConfigError,
        match=r"12 files in .*audio match no id, for example 'clip-test_000000\.wav'.*wanted",
    ):
        planned(source)
    for path in sorted((source / "audio").iterdir())[:5]:
        path.rename(path.with_name(path.name.removeprefix("clip-")))
    (note,) = planned(source).notes
    assert "7 files in" in note
    assert "'clip-train_000002.wav'; 5 of 12 listed clips have one" in note
    for path in sorted((source / "audio").glob("clip-*")):
        path.rename(path.with_name(path.name.removeprefix("clip-")))
    (source / "audio" / "another.wav").write_bytes(b"")
    assert planned(source).notes == ()  # a folder may hold more than the lists name


def pack_command(source, out, capsys):
    """Exit code, output and errors of `furnace pack audioset`, in one line each."""
    options = f"--num-classes {len(MIDS)} --num-frames 1 --image-size 16 --workers 1".split()
    with pytest.raises(SystemExit) as caught:
        run_command(pack.main, ["audioset", "--source", str(source), "--out", str(out), *options])
    texts = capsys.readouterr()
    return caught.value.code, " ".join(texts.out.split()), " ".join(texts.err.split())


def test_pack_prints_files_that_match_no_clip(tmp_path, capsys):
    """The note comes before the counts of listed and found clips."""
    source, _ = small_set(tmp_path, 9)
    with (source / CSV.test).open("a") as file:
        file.write(rows(["test_gone01", "test_gone02"]))
    soundfile.write(source / "audio" / "clip-1.wav", tone(3, 16_000), 16_000)
    code, out, err = pack_command(source, tmp_path / "set", capsys)
    assert (code or 0) == 2  # no clip has a frame, which is too much for --max-refused
    assert (
        f"note: 1 files in {source / 'audio'} match no id, for example 'clip-1.wav'; 12 of 14 "
        "listed clips have one: wanted <id>.flac (or .wav, .ogg, .mp3), Y<id>.flac or "
        "<id>_<start>_<end>.flac"
    ) in out
    assert "image missing 12" in err


def test_pack_prints_counts_of_missing_clips(tmp_path, capsys):
    source, ids = small_set(tmp_path, 9)
    (source / CSV.train).write_text(rows([*ids["train"], "gone_000001"]))
    for clip in ids["train"] + ids["test"]:
        marked(1, 16, 16).save(source / "frames" / "frame_0" / f"{clip}.jpg")
    code, out, _ = pack_command(source, tmp_path / "set", capsys)
    assert not code
    assert "note:" not in out
    assert "split listed found packed refused incomplete" in out
    counts = open_columns(tmp_path / "set").manifest.counts
    assert sum(count["listed"] for count in counts.values()) == 13
    assert sum(count["found"] for count in counts.values()) == 12


def test_a_small_set_is_an_error_with_all_notes(tmp_path):
    source, _ = small_set(tmp_path, 1)
    (source / CSV.test).write_text(rows(["test_000000", "test_gone01"]))
    with pytest.raises(ConfigError, match=r"give --val-list; 2 files in .* match no id"):
        planned(source)


def test_pack_prints_sounds_that_are_not_decoded(tmp_path, capsys):
    m4a = b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom"
    source, ids = small_set(tmp_path, 5, form="{}.m4a", content=m4a)
    for clip in ids["train"] + ids["test"]:
        marked(1, 16, 16).save(source / "frames" / "frame_0" / f"{clip}.jpg")
    code, out, err = pack_command(source, tmp_path / "set", capsys)
    assert code == 2
    assert (
        "note: 8 of 8 sounds are .m4a or similar, which is not decoded: convert them, "
        "e.g. ffmpeg -i"
    ) in out
    assert "audio unreadable 8" in err
    pack_files(
        planned(source), tmp_path / "set", lambda *_: None, workers=1, max_refused=1, force=True
    )
    lines = (open_columns(tmp_path / "set").folder / "refused.jsonl").read_text().splitlines()
    assert {json.loads(line)["detail"] for line in lines} == {
        "MPEG-4 (.m4a, .mp4) is not decoded here: convert it to FLAC, e.g. ffmpeg -i FILE out.flac"
    }


@pytest.mark.fuzz
@given(
    st.binary(max_size=60)
    | st.tuples(
        st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]),
        st.lists(
            st.sampled_from(
                [
                    b"abc",
                    b"-x",
                    b",",
                    b'"',
                    b"\n",
                    b"\r\n",
                    b"#",
                    b"30.0",
                    b"nan",
                    b"/m/0a",
                    b"\0",
                    b"\xff",
                ]
            )
        ),
    ).map(lambda parts: parts[0] + b"".join(parts[1])),
    st.sampled_from(["list.csv", "list.json"]),
)
def test_fuzz_a_list_is_read_or_refused(tmp_path_factory, content, name):
    folder = tmp_path_factory.getbasetemp()
    (folder / name).write_bytes(content)
    try:
        clips = read(folder / name, folder / "none")
    except ConfigError as error:
        assert str(folder / name) in str(error)  # noqa: PT017  either outcome is right
    else:
        assert len({clip.video_id for clip in clips}) == len(clips)
