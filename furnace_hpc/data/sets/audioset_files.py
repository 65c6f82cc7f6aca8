"""Find the sound file of each clip, named by the id or as common download programs name it."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from furnace_hpc.config.errors import ConfigError

# If a clip has several files, the first of these formats is used.
SOUNDS = (".flac", ".wav", ".aiff", ".aif", ".aifc", ".au", ".ogg", ".oga", ".opus", ".mp3")
# Used only if there is no other. The refusal names the format.
NOT_DECODED = (
    ".m4a", ".mp4", ".aac", ".webm", ".mka", ".mkv", ".wma", ".wv", ".amr", ".3gp",
    ".w64", ".caf",  # codespell:ignore caf
)  # fmt: skip
_SUFFIXES = {suffix: place for place, suffix in enumerate(SOUNDS + NOT_DECODED)}
_TIMES = (re.compile(r"(.+)_(\d+(?:\.\d+)?)_\d+(?:\.\d+)?"), re.compile(r"(.+)_(\d+(?:\.\d+)?)"))
_BRACKETS = re.compile(r".* \[([\w-]+)\]", re.DOTALL)  # yt-dlp writes `Title [<id>]`


class SoundFiles:
    """The sound files of a folder, listed once."""

    def __init__(self, folder: Path) -> None:
        self._exact: dict[str, Path] = {}
        self._others: dict[str, list[tuple[float | None, Path]]] = {}
        self.folder, self.paths = folder, _sounds_in(folder)
        for path in self.paths:
            self._exact.setdefault(path.stem, path)
        for stem, path in self._exact.items():
            for name, start in _readings(stem):
                self._others.setdefault(name, []).append((start, path))

    def of(self, clip: str, start_s: float | None) -> Path | None:
        """Return the file of a clip. None if there is none.

        It is named `<id>` or `Y<id>`, optionally followed by start and end in s or ms, or
        `Title [<id>]`.

        Raises:
            ConfigError: several files have this id, and the list has no start time to choose one.
        """
        if path := self._exact.get(clip):
            return path
        found = [
            path
            for start, path in self._others.get(clip, ())
            if start is None or start_s is None or start in (start_s, 1000 * start_s)
        ]
        if len(found) > 1 and start_s is None:
            names = " and ".join(repr(path.name) for path in found[:2])
            raise ConfigError(
                f"clip {clip!r} may be {names} in {found[0].parent}: keep one, named <id>.flac"
            )
        return next(iter(found), None)

    def unmatched(self, used: Collection[Path], num_listed: int) -> str | None:
        """Describe files of unlisted clips. None if there are none, or all clips have a file."""
        unmatched = [path for path in self.paths if path not in used]
        if not unmatched or len(used) >= num_listed:
            return None
        example = min(unmatched, key=lambda path: path.name).name
        return (
            f"{len(unmatched):,} files in {self.folder} match no id, for example {example!r}; "
            f"{len(used):,} of {num_listed:,} listed clips have one"
        )


def _sounds_in(folder: Path) -> list[Path]:
    """Return the sound files of a folder, the best format first. Empty if the folder is missing."""
    if not folder.is_dir():
        return []
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _SUFFIXES and path.name[:1] != "."
    ]
    return sorted(files, key=lambda path: (_SUFFIXES[path.suffix.lower()], path.name))


def _readings(stem: str) -> Iterator[tuple[str, float | None]]:
    """Yield each (id, start) that a file name without suffix may mean, apart from the id itself."""
    names = [stem]
    if titled := _BRACKETS.fullmatch(stem):
        yield titled[1], None
    if stem.startswith("Y"):
        names.append(stem[1:])
        yield stem[1:], None
    for name in names:
        for pattern in _TIMES:
            if times := pattern.fullmatch(name):
                yield times[1], float(times[2])
