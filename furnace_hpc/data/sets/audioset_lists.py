"""What AudioSet's files list: the official segment CSVs, the class list, the ontology, and CAV-MAE's JSON."""

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.packing.source_lists import decoded, read_json_file
from furnace_hpc.data.sets.audioset_files import SoundFiles

NUM_CLASSES = 527
CLASS_FILE = "class_labels_indices.csv"


@dataclass(frozen=True)
class Clip:
    """One listed clip."""

    video_id: str
    """YouTube's id; may begin with "-", and differs from others by case alone."""
    classes: tuple[int, ...]
    sound: Path | None
    frames: Path
    """The folder with frame_0 to frame_9."""


@dataclass(frozen=True)
class Classes:
    """The classes in index order."""

    mids: tuple[str, ...]
    names: tuple[str, ...]

    def index(self, mids: str, place: str) -> tuple[int, ...]:
        """Indices of comma-joined mids, ascending.

        Raises:
            ConfigError: one is not in the class list; `place` names the row.
        """
        found = set()
        for mid in filter(None, (part.strip() for part in mids.split(","))):
            if mid not in self._places:
                raise ConfigError(
                    f"{place}: label {mid!r} is not in {CLASS_FILE}: the files are of two sets"
                )
            found.add(self._places[mid])
        return tuple(sorted(found))

    @property
    def _places(self) -> dict[str, int]:
        return _places(self.mids)


_PLACES: dict[tuple[str, ...], dict[str, int]] = {}


def _places(mids: tuple[str, ...]) -> dict[str, int]:
    return _PLACES.setdefault(mids, {mid: index for index, mid in enumerate(mids)})


def read_classes(path: Path, ontology: Path, num_classes: int) -> Classes:
    """Read `class_labels_indices.csv` (index, mid, display_name); where `ontology.json` is there, check it against it.

    Raises:
        ConfigError: the header or an index is not as it should be, there are more or fewer than `num_classes`, or the
            ontology does not know a mid.
    """
    rows = _read_rows(path)
    if not rows or [cell.strip() for cell in rows[0]] != ["index", "mid", "display_name"]:
        raise ConfigError(
            f"{path}: its first line is {rows[0] if rows else 'missing'}, wanted index,mid,display_name"
        )
    for number, row in enumerate(rows[1:]):
        if len(row) != 3 or row[0].strip() != str(number):
            raise ConfigError(
                f"{path}: line {number + 2} is {row}, wanted index {number}, mid, display_name"
            )
    if len(rows) - 1 != num_classes:
        raise ConfigError(
            f"{path} lists {len(rows) - 1} classes, wanted {num_classes}: fetch it again, or give --num-classes "
            f"{len(rows) - 1} where it is a choice of your own"
        )
    classes = Classes(
        tuple(row[1].strip() for row in rows[1:]), tuple(row[2].strip() for row in rows[1:])
    )
    if len(set(classes.mids)) != len(classes.mids):
        twice = next(mid for mid in classes.mids if classes.mids.count(mid) > 1)
        raise ConfigError(f"{path}: mid {twice!r} stands twice")
    if ontology.is_file():
        nodes = read_json_file(ontology)
        known = {node.get("id") for node in nodes} if isinstance(nodes, list) else set()
        if lost := next((mid for mid in classes.mids if mid not in known), None):
            raise ConfigError(
                f"{path}: mid {lost!r} is not in {ontology}: the files are of two versions"
            )
    return classes


def read_clips(path: Path, classes: Classes, sounds: Path | SoundFiles, frames: Path) -> list[Clip]:
    """Read a list of clips, an official CSV or CAV-MAE's JSON, by its suffix; `sounds` may be listed already.

    Raises:
        ConfigError: a row is malformed, an id stands twice, or a label is unknown.
    """
    read = _read_json if path.suffix == ".json" else _read_segments
    clips = read(
        path, classes, sounds if isinstance(sounds, SoundFiles) else SoundFiles(sounds), frames
    )
    seen: set[str] = set()
    for clip in clips:
        _check_id(path, clip.video_id)
        if clip.video_id in seen:
            raise ConfigError(f"{path}: clip {clip.video_id!r} stands twice: keep one row")
        seen.add(clip.video_id)
    return clips


def _check_id(path: Path, video_id: str) -> None:
    """Raise ConfigError where an id cannot be the name of a file."""
    name = video_id.encode(errors="replace")
    if not name or len(name) > 200 or name.decode() != video_id or set(video_id) & {"/", "\0"}:
        shown = repr(video_id[:40]) + ("..." if len(video_id) > 40 else "")
        raise ConfigError(
            f"{path}: {shown} is no id of a clip, wanted up to 200 letters that can name a file"
        )


def _read_segments(path: Path, classes: Classes, sounds: SoundFiles, frames: Path) -> list[Clip]:
    """Rows like `-0RWZT-miFs, 420.000, 430.000, "/m/03v3yw,/m/0k4j"`, after three lines that begin with #."""
    clips = []
    for number, row in enumerate(_read_rows(path), start=1):
        if row and row[0].startswith("#"):
            continue
        if len(row) != 4:
            raise ConfigError(
                f"{path}: line {number} has {len(row)} fields, wanted YTID, start, end, labels"
            )
        video_id, start_s = row[0].strip(), _start_s(path, number, row)
        indices = classes.index(row[3], f"{path}: line {number} ({video_id})")
        clips.append(Clip(video_id, indices, sounds.of(video_id, start_s), frames))
    return clips


def _start_s(path: Path, number: int, row: list[str]) -> float:
    try:
        start_s, end_s = float(row[1]), float(row[2])
    except ValueError:
        raise ConfigError(
            f"{path}: line {number}: {row[1]!r} and {row[2]!r} are no seconds"
        ) from None
    if not start_s < end_s:
        raise ConfigError(
            f"{path}: line {number}: the segment ends at {end_s} s, before it starts at {start_s} s"
        )
    return start_s


def _read_json(path: Path, classes: Classes, sounds: SoundFiles, frames: Path) -> list[Clip]:
    """`{"data": [{"video_id", "wav", "video_path", "labels"}]}`; paths of another machine give way to ours."""
    content = read_json_file(path)
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ConfigError(f'{path}: wanted {{"data": [...]}}, a list of clips')
    clips = []
    for number, entry in enumerate(entries):
        place = f"{path}: entry {number}"
        lost = [
            key for key in ("video_id", "labels") if not isinstance(entry, dict) or key not in entry
        ]
        if lost:
            raise ConfigError(f"{place} has no {lost[0]!r}")
        video_id = str(entry["video_id"])
        clips.append(
            Clip(
                video_id,
                classes.index(str(entry["labels"]), f"{place} ({video_id})"),
                _given(entry.get("wav"), sounds.of(video_id, None)),
                _given(entry.get("video_path"), frames) or frames,
            )
        )
    return clips


def _given(path: Any, ours: Path | None) -> Path | None:
    """The entry's own path where that is there, else ours."""
    return Path(path) if isinstance(path, str) and os.path.exists(path) else ours  # noqa: PTH110  any string is allowed


def _read_rows(path: Path) -> list[list[str]]:
    try:
        text = decoded(path.read_bytes())
        return [
            row for row in csv.reader(io.StringIO(text, newline=""), skipinitialspace=True) if row
        ]
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: look at --source") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, wanted a CSV file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is no CSV file ({error}): fetch it again") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): look at --source") from None
