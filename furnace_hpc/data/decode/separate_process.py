"""Decode files in another process, so that a crash or hang of a decoder does not end this one."""

import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.decode.child_process import Child, cause_of, ends_allowed
from furnace_hpc.data.decode.reading import Watch, reading, watch_this_process
from furnace_hpc.data.packing.rejects import Unusable

Knobs = TypeVar("Knobs")
Source = TypeVar("Source")  # a path, or a part of a file
Made = TypeVar("Made")


class DecoderProcess:
    """A process that decodes files one by one. It starts with the first file."""

    def __init__(self, preload: tuple[str, ...]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        self._child: Child | None = None

    def __enter__(self) -> "DecoderProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._child:
            self._child.process.kill()
            self._child.end()

    def read(self, read: Callable[[Source, Knobs], Made], path: Source, knobs: Knobs) -> Made:
        """Return `read(path, knobs)`.

        Raises:
            Unusable, ConfigError: `read` raised it.
            Unusable: the file ended the process, more than once if a kill may be the cause.
        """
        for attempt in count(1):
            self._child = self._child or Child(self._context, _serve)
            with suppress(EOFError, OSError):
                self._child.pipe.send((read, path, knobs))
                made = self._child.pipe.recv()
                if isinstance(made, Exception):
                    raise made
                return made  # type: ignore[no-any-return]
            code, _ = self._child.end()
            self._child = None
            if attempt >= ends_allowed(code):
                raise Unusable("unreadable", cause_of(code))
        raise AssertionError


def _serve(pipe: Connection, watch: Watch) -> None:
    # Ctrl-C also reaches the parent, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch_this_process(watch)
    with suppress(EOFError, OSError):  # the parent has ended
        while True:
            read, path, knobs = pipe.recv()
            watch.begin(0, {})
            made: Any
            try:
                with reading(path):
                    made = read(path, knobs)
            except (Unusable, ConfigError) as error:
                made = error
            pipe.send(made)
