"""`--audio-start` and `--audio-end`: rows that are segments of longer sounds."""

import json
import re

import numpy as np
import polars as pl
import pytest
import soundfile
from table_files import RATE_HZ
from use_study import exported

from furnace_hpc import pack
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.decode.audio import SoundKnobs, read_wave
from furnace_hpc.data.decode.segments import Segment
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.inference.predictor import Predictor
from furnace_hpc.inference.table_rows import open_input

TALKS, PARTS, SECONDS = 6, 5, 4.0
GIVEN = ("--audio-start", "from", "--audio-end", "to")


def noise(number: int, seconds: float = SECONDS) -> np.ndarray:
    return np.random.default_rng(number).normal(0, 0.2, int(RATE_HZ * seconds)).astype("float32")


def write_talks(folder, **changes):
    """Six sounds of four seconds, and five segments of each. Splits do not share a sound."""
    folder.mkdir(exist_ok=True)
    rows = []
    for talk in range(TALKS):
        soundfile.write(folder / f"{talk}.wav", noise(talk), RATE_HZ, subtype="FLOAT")
        for part in range(PARTS):
            start = round(0.7 * part + 0.05 * talk, 3)
            row = {"id": f"{talk}-{part}", "file": f"{talk}.wav", "from": start, "to": start + 0.6}
            rows.append(
                row | {"label": "ab"[part % 2], "split": ["train", "val", "test"][talk % 3]}
            )
    frame = pl.DataFrame(rows)
    for name, cells in changes.items():
        values = [str(value) for value in frame[name]]
        values[7:8] = cells
        frame = frame.with_columns(pl.Series(name, values, pl.String))
    frame.write_csv(folder / "talks.csv")
    return folder / "talks.csv"


def run(source, out, *arguments):
    pack.main(
        args=[
            *("table", "--source", str(source), "--audio", "file", "--label", "label"),
            *("--id", "id", "--split-column", "split", "--audio-seconds", "0.6"),
            *("--workers", "1", "--out", str(out), *arguments),
        ],
        standalone_mode=False,
    )
    return open_columns(out)


def sounds_of(columns) -> dict[str, np.ndarray]:
    """Id -> coefficients and length of each sample."""
    found = {}
    for split in columns.manifest.splits:
        part = columns.split(split)
        rows = zip(part["source_id"], part["audio"], part["audio_length"], strict=True)
        found |= {name.decode(): (values, int(length)) for name, values, length in rows}
    return found


def test_a_segment_is_a_file_of_its_own(tmp_path):
    """The columns are those of files that hold only the segment."""
    source = write_talks(tmp_path / "talks")
    found = sounds_of(run(source, tmp_path / "packed", *GIVEN))
    table = pl.read_csv(source)
    for name, file, start in table.select("id", "file", "from").iter_rows():
        first = round(start * RATE_HZ)
        samples = noise(int(file[0]))[first : first + round(0.6 * RATE_HZ)]
        soundfile.write(tmp_path / "talks" / f"{name}.wav", samples, RATE_HZ, subtype="FLOAT")
    table = table.with_columns(file=pl.format("{}.wav", "id"))
    table.write_csv(tmp_path / "talks" / "parts.csv")
    wanted = sounds_of(run(tmp_path / "talks" / "parts.csv", tmp_path / "parts"))
    assert found.keys() == wanted.keys()
    assert len(found) == TALKS * PARTS
    for name, (values, length) in found.items():
        assert length == wanted[name][1] == 60
        np.testing.assert_array_equal(values, wanted[name][0])


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_segment_is_a_part_of_the_decoded_file(tmp_path, kind):
    """Also of formats whose samples depend on where decoding begins."""
    path = tmp_path / f"sound.{kind.lower()}"
    soundfile.write(path, np.stack([noise(1), noise(2)], axis=1), RATE_HZ, format=kind)
    whole = read_wave(path, SoundKnobs())
    for start_s, end_s in ((0, 1), (1.2345, 2.5), (3.25, np.inf), (0, np.inf), (3, 4.05)):
        found = read_wave(path, SoundKnobs(), Segment(start_s, end_s))
        last = len(whole) if end_s > SECONDS else round(end_s * RATE_HZ)
        np.testing.assert_array_equal(found, whole[round(start_s * RATE_HZ) : last])


@pytest.mark.parametrize(("start", "end"), [(4, 5), (2, 4.2), (9, np.inf)])
def test_a_segment_outside_the_file_is_refused(tmp_path, start, end):
    path = tmp_path / "sound.wav"
    soundfile.write(path, noise(1), RATE_HZ)
    with pytest.raises(Unusable) as raised:
        read_wave(path, SoundKnobs(), Segment(start, end))
    assert raised.value.reason == "outside the file"
    assert raised.value.detail == f"{Segment(start, end)}, but the sound has 4 s"


def test_refusals_name_the_row_and_the_segment(tmp_path):
    source = write_talks(tmp_path / "talks", to=["7.5"])
    columns = run(source, tmp_path / "packed", *GIVEN)
    line, _ = (tmp_path / "packed" / "refused.jsonl").read_text().splitlines()
    refusal = json.loads(line)
    assert refusal["reason"] == "outside the file"
    assert refusal["detail"] == "1.45 s to 7.5 s, but the sound has 4 s"
    assert refusal["file"].startswith("1.wav (talks.csv:8, 1.45 s")
    assert sum(columns.manifest.splits.values()) == TALKS * PARTS - 1


@pytest.mark.parametrize(
    ("column", "cell", "wanted"),
    [
        ("to", "0.2", "the sound of row 8 starts at 1.45 s and ends at 0.2 s (rows like it: 1)"),
        ("to", "1.45", "the sound of row 8 starts at 1.45 s and ends at 1.45 s"),
        ("from", "-1", "--audio-start 'from': row 8 has no number of seconds, 0 or more"),
        ("from", "0:12", "--audio-start 'from': row 8 has no number of seconds"),
        ("to", "soon", "--audio-end 'to': row 8 has no number of seconds"),
    ],
)
def test_a_wrong_segment_is_one_error(tmp_path, column, cell, wanted):
    source = write_talks(tmp_path / "talks", **{column: [cell]})
    with pytest.raises(ConfigError) as raised:
        run(source, tmp_path / "packed", *GIVEN)
    assert wanted in str(raised.value)
    assert not (tmp_path / "packed").exists()


def test_segments_without_sounds_are_an_error(tmp_path):
    source = write_talks(tmp_path / "talks")
    with pytest.raises(ConfigError, match="--audio-start and --audio-end need --audio"):
        pack.main(
            args=["table", "--source", str(source), "--text", "id", "--label", "label", *GIVEN],
            standalone_mode=False,
        )


def test_overlapping_segments_in_two_splits_are_a_leak(tmp_path, capsys):
    """Other segments of one sound in two splits are a warning."""
    source = write_talks(tmp_path / "talks", split=["test"])  # of a sound in val
    run(source, tmp_path / "packed", *GIVEN)
    assert "warning: segments of 1 sounds are in two splits. --group" in capsys.readouterr().out
    source = write_talks(tmp_path / "talks", split=["test"], to=["2.2"])  # the next begins at 2.15
    with pytest.raises(ConfigError) as raised:
        run(source, tmp_path / "other", *GIVEN)
    assert "1 audio file in two splits" in str(raised.value)
    assert re.search(r"val \(row 9, 1.wav\) and test \(row 8, 1.wav\)", str(raised.value))


def test_empty_cells_are_the_ends_of_the_sound(tmp_path):
    source = write_talks(tmp_path / "talks", to=[""])
    found = sounds_of(run(source, tmp_path / "packed", *GIVEN, "--audio-seconds", "3"))
    assert found["1-2"][1] == 1 + round((SECONDS - 1.45) * 100)
    assert found["1-1"][1] == 61


def test_predictions_read_the_same_segments(tmp_path):
    """Of a table with the columns of the pack, and of samples in Python."""
    source = write_talks(tmp_path / "talks")
    columns = run(source, tmp_path / "packed", *GIVEN)
    changes = {"tasks": [{"name": "label"}], "model__modalities": ("audio",)}
    predictor = Predictor.load(exported(tmp_path, tmp_path / "packed", **changes), "cpu")
    wanted = sounds_of(columns)
    (tmp_path / "scratch").mkdir()
    with open_input(source, predictor.exported, {}, None, tmp_path / "scratch") as table:
        rows = list(table.samples())
    assert {name for _, name, _ in rows} == {*wanted}
    for _, name, sample in rows:
        values = predictor.read(sample)
        np.testing.assert_array_equal(values["audio"], wanted[name][0])
        assert values["audio_length"] == wanted[name][1]
    for sound, problem in (
        ({"path": str(source), "begin": 1}, "audio has the key 'begin'"),
        ({"path": str(source), "start": 2, "end": 1}, "audio starts at 2 s and ends at 1 s"),
        ({"path": str(source.parent / "1.wav"), "start": 8}, "is outside the file (8 s to the end"),
    ):
        with pytest.raises(ConfigError, match=re.escape(problem)):
            predictor.predict(audio=sound)
