"""A data set whose files tell their decoder how to misbehave."""

import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from furnace_hpc.config.manifest import Labels
from furnace_hpc.data.decode import images
from furnace_hpc.data.decode.images import ImageKnobs
from furnace_hpc.data.packing.sample import Draft, PackPlan, Sample, Values, blank_sample

MODALITIES = ("image", "audio")
BLANK = blank_sample(
    20,
    MODALITIES,
    image=np.zeros((1, 1, 1), np.uint8),
    audio=np.zeros((1, 1), np.uint8),
    **{"label.x": np.zeros((), np.int16)},
)


class OddError(Exception):
    """An error that cannot be pickled and cannot be shown."""

    def __init__(self) -> None:
        super().__init__(lambda: None)

    def __str__(self) -> str:
        raise RuntimeError("it cannot be shown")


def misbehave(how: str, folder: Path) -> None:
    """Do what the file says. Any other content does nothing."""
    if action := ACTIONS.get(how):
        action(folder)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _spin() -> None:
    while True:
        pass


def _recurse(folder: Path) -> None:
    _recurse(folder)


def _raise(error: Exception) -> None:
    raise error


def _kill_once(folder: Path) -> None:
    if not (folder / "killed").exists():
        (folder / "killed").touch()
        _kill()


ACTIONS: dict[str, Callable[[Path], object]] = {
    "segfault": lambda _: ctypes.string_at(0),
    "abort": lambda _: os.abort(),
    "kill": lambda _: _kill(),
    "exit": lambda _: os._exit(3),
    "spin": lambda _: _spin(),
    "sleep": lambda _: time.sleep(1000),
    "memory": lambda _: bytearray(1 << 62),
    "recursion": _recurse,
    "odd error": lambda _: _raise(OddError()),
    "no descriptors": lambda _: _raise(OSError(errno.EMFILE, os.strerror(errno.EMFILE))),
    "killed once": _kill_once,
}


@dataclass(frozen=True)
class Reader:
    """Reads `<name>.<modality>`; a name that begins with "bug" breaks the program itself."""

    folder: Path

    def render(self, split: str, name: str) -> Sample:
        """One sample."""
        if name.startswith("crash before"):
            ctypes.string_at(0)
        draft = Draft.begin(split, name, MODALITIES, BLANK)
        if name.startswith("bug"):
            raise KeyError("a bug")
        if name.startswith("crash outside"):
            ctypes.string_at(0)
        for modality in MODALITIES:
            draft.add(modality, f"{name}.{modality}", lambda m=modality: self._read(name, m))
        draft.label("x", np.array(1))
        return draft.finish()

    def _read(self, name: str, modality: str) -> Values:
        how = (self.folder / f"{name}.{modality}").read_text()
        misbehave(how, self.folder)
        return {modality: np.full_like(BLANK[modality], len(name))}


def make_plan(folder: Path, files: dict[str, tuple[str, str]]) -> PackPlan:
    """Write files and plan their pack. `files`: name -> what the image and the audio do."""
    folder.mkdir(exist_ok=True)
    for name, contents in files.items():
        for modality, content in zip(MODALITIES, contents, strict=True):
            (folder / f"{name}.{modality}").write_text(content)
    rows: dict[str, Any] = {"train": list(files), "val": ["v"], "test": ["t"]}
    for name in ("v", "t"):
        for modality in MODALITIES:
            (folder / f"{name}.{modality}").write_text("")
    return PackPlan(
        dataset="crash",
        modalities=MODALITIES,
        labels={"x": Labels(kind="single_label", classes=("a", "b"))},
        rows=rows,
        listed={split: len(names) for split, names in rows.items()},
        blank=BLANK,
        render=Reader(folder).render,
        settings={"names": list(files)},
        chunk_rows=4,
    )


def read_image(path: Path, knobs: ImageKnobs) -> np.ndarray:
    """Decode an image, or do what the file says."""
    content = path.read_bytes()
    if len(content) < 20:
        misbehave(content.decode(), path.parent)
    return images.read_image(path, knobs)
