"""Predict for uploaded samples, one after the other."""

import asyncio
import io
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.text_safety import printable

if TYPE_CHECKING:
    from furnace_hpc.inference import Predictor

MAX_WAITING = 8  # requests that are accepted, the one in progress included


class Busy(Exception):
    """More requests wait than allowed."""


@dataclass(frozen=True)
class Upload:
    """A file of a request."""

    name: str
    """The sender's name of the file. It is shown, and its ending is used."""
    content: BinaryIO


@dataclass(frozen=True)
class Sample:
    """The input of a request."""

    values: Mapping[str, Any]
    """text and numbers."""
    files: Mapping[str, Upload] = field(default_factory=dict)
    """image and audio."""


class Worker:
    """One thread that predicts. Requests beyond a few are refused at once."""

    def __init__(self, predictor: "Predictor", max_waiting: int = MAX_WAITING) -> None:
        self._predictor, self._max_waiting = predictor, max_waiting
        self._thread = ThreadPoolExecutor(1, "predict")
        self.waiting = 0
        """Requests that are accepted and have no answer yet."""
        self.answered = 0

    async def predict(self, sample: Sample) -> dict[str, Any]:
        """Return the answer, as `furnace predict --json` prints it.

        Raises:
            Busy: too many requests wait.
            ConfigError: the sample cannot be used.
        """
        if self.waiting >= self._max_waiting:
            raise Busy
        self.waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._answer, sample)
        finally:
            self.waiting -= 1

    def warm_up(self) -> None:
        """Start the process that decodes files, which takes seconds, before the first request."""
        for name in ("image", "audio"):
            if name in self._predictor.modalities:
                empty = Upload(name, io.BytesIO(b"no file"))
                self._thread.submit(self._answer, Sample({}, {name: empty}))
                return

    def close(self) -> None:
        """Wait for the sample in progress, and drop all others."""
        self._thread.shutdown(cancel_futures=True)

    def _answer(self, sample: Sample) -> dict[str, Any]:
        from furnace_hpc.inference.batch_predict import content

        with TemporaryDirectory(prefix="furnace-serve-") as folder:
            paths = {
                name: _saved(upload, Path(folder, name)) for name, upload in sample.files.items()
            }
            try:
                values = self._predictor.read({**sample.values, **paths})
            except ConfigError as error:
                raise ConfigError(_with_own_names(str(error), paths, sample.files)) from None
            [answer] = self._predictor.predict_many([values])
        self.answered += 1
        return content(answer, None)


def _saved(upload: Upload, path: Path) -> Path:
    """Write an upload to a file. Of its name only a plain ending is used."""
    ending = Path(upload.name).suffix.lower()
    if ending[1:].isalnum() and ending.isascii() and len(ending) <= 6:
        path = path.with_suffix(ending)
    with path.open("wb") as file:
        shutil.copyfileobj(upload.content, file)
    return path


def _with_own_names(text: str, paths: Mapping[str, Path], files: Mapping[str, Upload]) -> str:
    """Replace paths of this machine with the names that the sender gave."""
    for name, path in paths.items():
        text = text.replace(str(path), printable(files[name].name))
    return text
