"""The user's file and line of a fault in own code."""

import inspect
import re
import traceback
from pathlib import Path

from torch import nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.own_code.references import Reference
from furnace_hpc.config.own_code.sources import OWN_CODE, OwnCode
from furnace_hpc.config.own_code.static_check import find

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


class Places:
    """Finds places in the user's files, from places in a copy of them."""

    def __init__(self, code: OwnCode | None, references: list[Reference]) -> None:
        self._code, self._references = code, references

    def of_definition(self) -> str:
        """Where the first class of own code is defined. Empty if the row uses none."""
        for reference in self._references:
            try:
                found = find(self._code, reference) if self._code else None
            except ConfigError:
                continue
            if found is not None:
                return found.place
        return ""

    def of_error(self, error: BaseException) -> str:
        """The innermost line of own code in an error's traceback, else the definition."""
        frames = traceback.extract_tb(error.__traceback__)
        return self._innermost([(frame.filename, frame.lineno or 0) for frame in frames])

    def of_log(self, text: str) -> str:
        """The innermost line of own code in the last traceback of a log, else the definition."""
        _, _, last = text.rpartition("Traceback (most recent call last)")
        frames = [(path, int(line)) for path, line in _FRAME.findall(last)]
        return self._innermost(frames)

    def of_module(self, model: nn.Module, name: str) -> str:
        """The class of the innermost module of own code that contains a module or parameter."""
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            try:
                module = model.get_submodule(".".join(parts[:length]))
            except AttributeError:
                continue
            if place := self._of_class(type(module)):
                return place
        return self.of_definition()

    def _of_class(self, of: type) -> str:
        try:
            file, (_, line) = inspect.getsourcefile(of), inspect.getsourcelines(of)
        except (OSError, TypeError):
            return ""
        own = self._own_file(file or "")
        return f"{own}:{line}" if own else ""

    def _innermost(self, frames: list[tuple[str, int]]) -> str:
        for path, line in reversed(frames):
            if own := self._own_file(path):
                return f"{own}:{line}"
        return self.of_definition()

    def _own_file(self, path: str) -> Path | None:
        """The user's file of a file in a copy of own code."""
        _, folder, name = path.rpartition(f"/{OWN_CODE}/")
        if self._code is None or not folder:
            return None
        return self._code.files.get(name)
