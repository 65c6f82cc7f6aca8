"""Read AudioSet's lists: the official CSVs, the class list, the ontology, and CAV-MAE's JSON."""

import csv
import io
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.packing.source_lists import decoded, read_json_file
from furnace_hpc.data.sets.audioset_files import SoundFiles
from furnace_hpc.host.regular_file import read_regular

NUM_CLASSES = 527
CLASS_FILE = "class_labels_indices.csv"
CLASS_HEADER = "index,mid,display_name"


@dataclass(frozen=True)
class Clip:
    """One listed clip."""

    video_id: str
    """YouTube's id. It may begin with "-", and two ids may differ only by case."""
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
        """Return the indices of comma-separated mids, ascending.

        Raises:
            ConfigError: one is not in the class list. The error begins with `place`.
        """
        found = set()
        for mid in filter(None, (part.strip() for part in mids.split(","))):
            if mid not in self._indices:
                raise ConfigError(
                    f"{place}: label {mid!r} is not in {CLASS_FILE}: use files of the same data set"
                )
            found.add(self._indices[mid])
        return tuple(sorted(found))

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {mid: index for index, mid in enumerate(self.mids)}


def read_classes(path: Path, ontology: Path, num_classes: int) -> Classes:
    """Read `class_labels_indices.csv` (index, mid, display_name).

    If `ontology.json` exists, check the classes against it.

    Raises:
        ConfigError: the header, an index or the number of classes is wrong, or a mid is unknown.
    """
    rows = _read_rows(path)
    header = ""
    if rows:
        header = ",".join(cell.strip() for cell in rows[0])
    if header != CLASS_HEADER:
        raise ConfigError(f"{path}: its first line is {header!r}, wanted {CLASS_HEADER}")
    for number, row in enumerate(rows[1:]):
        if len(row) != 3 or row[0].strip() != str(number):
            raise ConfigError(
                f"{path}: line {number + 2} is {row}, wanted index {number}, mid, display_name"
            )
    if len(rows) - 1 != num_classes:
        raise ConfigError(
            f"{path} lists {len(rows) - 1} classes, wanted {num_classes}: download it again, or "
            f"give --num-classes {len(rows) - 1} if it is your own choice of classes"
        )
    classes = Classes(
        tuple(row[1].strip() for row in rows[1:]), tuple(row[2].strip() for row in rows[1:])
    )
    if len(set(classes.mids)) != len(classes.mids):
        duplicate = next(mid for mid in classes.mids if classes.mids.count(mid) > 1)
        raise ConfigError(f"{path}: mid {duplicate!r} is listed twice: download it again")
    if ontology.is_file():
        _check_ontology(path, classes, ontology)
    return classes


def _check_ontology(path: Path, classes: Classes, ontology: Path) -> None:
    """Raise ConfigError if a class is not in the ontology."""
    nodes = read_json_file(ontology)
    known = set()
    if isinstance(nodes, list):
        known = {node.get("id") for node in nodes}
    for mid in classes.mids:
        if mid not in known:
            raise ConfigError(
                f"{path}: mid {mid!r} is not in {ontology}: use files of the same version"
            )


def read_clips(path: Path, classes: Classes, sounds: SoundFiles, frames: Path) -> list[Clip]:
    """Read a list of clips: CAV-MAE's JSON if the name ends in .json, else an official CSV.

    Raises:
        ConfigError: a row is malformed, an id is listed twice, or a label is unknown.
    """
    if path.suffix == ".json":
        clips = _read_json(path, classes, sounds, frames)
    else:
        clips = _read_segments(path, classes, sounds, frames)
    seen: set[str] = set()
    for clip in clips:
        _check_id(path, clip.video_id)
        if clip.video_id in seen:
            raise ConfigError(f"{path}: clip {clip.video_id!r} is listed twice: keep one row")
        seen.add(clip.video_id)
    return clips


def _check_id(path: Path, video_id: str) -> None:
    """Raise ConfigError if an id cannot be a file name."""
    name = video_id.encode(errors="replace")
    if not name or len(name) > 200 or name.decode() != video_id or set(video_id) & {"/", "\0"}:
        shown = repr(video_id)
        if len(shown) > 60:
            shown = f"{shown[:60]}..."
        raise ConfigError(
            f"{path}: {shown} is not a clip id, wanted up to 200 bytes that can be a file name"
        )


def _read_segments(path: Path, classes: Classes, sounds: SoundFiles, frames: Path) -> list[Clip]:
    """Read rows like `-0RWZT-miFs, 420.000, 430.000, "/m/03v3yw,/m/0k4j"`. Skip lines with #."""
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
            f"{path}: line {number}: {row[1]!r} and {row[2]!r} are not numbers of seconds"
        ) from None
    if not start_s < end_s:
        raise ConfigError(
            f"{path}: line {number}: the segment ends at {end_s} s, before it starts at {start_s} s"
        )
    return start_s


def _read_json(path: Path, classes: Classes, sounds: SoundFiles, frames: Path) -> list[Clip]:
    """Read `{"data": [{"video_id", "wav", "video_path", "labels"}]}`.

    Paths that do not exist here are replaced by files of the source folder.
    """
    content = read_json_file(path)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise ConfigError(f'{path}: wanted {{"data": [...]}}, a list of clips')
    clips = []
    for number, entry in enumerate(content["data"]):
        place = f"{path}: entry {number}"
        for key in ("video_id", "labels"):
            if not isinstance(entry, dict) or key not in entry:
                raise ConfigError(f"{place} has no {key!r}")
        video_id = str(entry["video_id"])
        clips.append(
            Clip(
                video_id,
                classes.index(str(entry["labels"]), f"{place} ({video_id})"),
                _existing(entry.get("wav")) or sounds.of(video_id, None),
                _existing(entry.get("video_path")) or frames,
            )
        )
    return clips


def _existing(path: Any) -> Path | None:
    """Return the path of an entry. None if it does not exist here."""
    # not Path.exists: it raises for some strings
    if isinstance(path, str) and os.path.exists(path):  # noqa: PTH110
        return Path(path)
    return None


def _read_rows(path: Path) -> list[list[str]]:
    try:
        text = decoded(read_regular(path, at_most=None))
        reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
        return [row for row in reader if row]
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: check --source") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, wanted a CSV file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is not a CSV file ({error}): download it again") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): check --source") from None
