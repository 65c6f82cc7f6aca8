"""Store the position of each run in a tracker, in `runs/<grid>/trackers/`, and lock it.

The file of a tracker has one entry per run. It is written after the tracker has accepted the data.
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.format_number import check_number
from furnace_hpc.host.durable_files import replace_file
from furnace_hpc.host.json_lines import read_json
from furnace_hpc.trackers.records import Position

FORMAT = 1
EVERY_S = 2.0  # between two writes of the file during a pass
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system without locks


class Sent(NamedTuple):
    """The part of a run that was sent."""

    files: str  # names, times and sizes of the run's files at that time
    info: str  # digest of config, tags and summary
    position: Position
    state: dict[str, Any]  # of the tracker


class Cursor:
    """The sent part of each run of a grid. It is empty if the file is missing or damaged.

    Raises:
        ConfigError: a newer Furnace wrote the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._written_s, self._is_changed = path, 0.0, False
        self.runs: dict[str, Sent] = {}
        number = None
        try:
            content = read_json(path)
            number = content["format"]
            if number == FORMAT:
                self.runs = {run: _read(entry) for run, entry in content["runs"].items()}
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError):
            self.runs = {}
        check_number(path, number, str(FORMAT))

    def set(self, run: str, sent: Sent) -> None:
        """Record what was sent. The file is written every two seconds at most."""
        self.runs[run], self._is_changed = sent, True
        if time.monotonic() > self._written_s + EVERY_S:
            self.write()

    def write(self) -> None:
        """Write the file if something has changed."""
        if not self._is_changed:
            return
        runs = {
            run: sent._replace(position=sent.position.as_json())._asdict()  # type: ignore[arg-type]
            for run, sent in self.runs.items()
        }
        content = json.dumps({"format": FORMAT, "runs": runs}).encode()
        replace_file(self._path, content, durable=False)
        self._written_s, self._is_changed = time.monotonic(), False


def _read(entry: dict[str, Any]) -> Sent:
    position = Position.from_json(entry["position"])
    return Sent(str(entry["files"]), str(entry["info"]), position, dict(entry["state"]))


@contextmanager
def locked(path: Path, command: str) -> Iterator[None]:
    """Hold a lock that ends with this process, also after a kill.

    Args:
        path: file of the lock.
        command: what the user called, for the error.

    Raises:
        ConfigError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                file.seek(0)
                holder = file.read(200).decode("utf-8", "replace").strip() or "another process"
                raise ConfigError(
                    f"{command} is running already: {holder}. Wait until it ends, or stop it"
                ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        file.flush()
        yield
