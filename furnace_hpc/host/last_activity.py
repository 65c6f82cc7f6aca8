"""Find when an attempt last wrote anything, and the last step that it reached.

Standard library only, syntax of Python 3.6.
"""

import os
import time

from furnace_hpc.host.json_lines import parse_lines, read_tail

TAIL_BYTES = 16384  # read from the end of a log or of metrics


def last_write(run_dir: str, number: int, start_unix_s: float) -> float:
    """The time at which an attempt last wrote a file, in Unix seconds. At least its start."""
    found = [start_unix_s]
    for folder in ("attempts", "verdicts", "metrics", "logs"):
        try:
            with os.scandir(os.path.join(run_dir, folder)) as entries:
                for entry in entries:
                    if entry.name.startswith((f"{number}-", f"{number}.")):
                        found.append(entry.stat().st_mtime)
        except OSError:
            continue
    return float(min(time.time(), max(found)))


def tail(path: str, num_bytes: int = TAIL_BYTES) -> bytes:
    """The end of a file. Empty if it cannot be read."""
    try:
        return read_tail(path, num_bytes)
    except OSError:
        return b""


def last_step_in_metrics(run_dir: str, number: int) -> int:
    """The last step in the attempt's metrics. 0 if they have none."""
    lines = tail(os.path.join(run_dir, "metrics", f"{number}.jsonl")).split(b"\n")
    for record in parse_lines(reversed(lines)):
        try:
            return int(record["step"])
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return 0
