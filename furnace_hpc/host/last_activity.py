"""Signs that an attempt has left beside its record: when it last wrote anything, and how far it came.

Standard library only, syntax of Python 3.6: the host side uses it.
"""

import json
import os
import time

from furnace_hpc.host.regular_file import open_regular

TAIL = 16384  # bytes at the end of a log or of metrics that are looked at


def last_sign(run_dir: str, number: int, start: float) -> float:
    """When an attempt last wrote anything: somebody may look for its end days later."""
    now, found = time.time(), [start]
    for folder in ("attempts", "verdicts", "metrics", "logs"):
        try:
            with os.scandir(os.path.join(run_dir, folder)) as entries:
                mine = [
                    entry
                    for entry in entries
                    if entry.name.startswith(("%d-" % number, "%d." % number))
                ]
                found += [entry.stat().st_mtime for entry in mine]
        except OSError:
            continue
    return float(min(now, max(found)))


def tail(path: str) -> bytes:
    """The end of a file; nothing where there is none."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            end = file.read()  # type: bytes
        return end
    except OSError:
        return b""


def step_of_metrics(run_dir: str, number: int) -> int:
    """The last step that the attempt's metrics tell; 0 where they tell none."""
    for line in reversed(tail(os.path.join(run_dir, "metrics", "%d.jsonl" % number)).split(b"\n")):
        try:
            return int(json.loads(line.decode("utf-8"))["step"])
        except (ValueError, KeyError, TypeError):
            continue  # torn, or the tail's first
    return 0
