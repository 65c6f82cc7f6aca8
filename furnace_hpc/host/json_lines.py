"""Read JSON files, JSON lines from files that still grow, and the end of long files.

A process that was killed may leave half a line at the end. Such a line is skipped. Standard library
only, syntax of Python 3.6.
"""

import json
import os
from collections import deque
from typing import Any, Callable, Dict, Iterable, Iterator, Optional, Union

from furnace_hpc.host.regular_file import Name, open_regular, read_regular
from furnace_hpc.host.regular_file import read_tail as read_tail

Record = Dict[str, Any]


def read_json(path: Name) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is not JSON, nested too deeply, too large, or no regular file.
        OSError: as `open_regular`.
    """
    content = read_regular(path).decode("utf-8")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_line(line: Union[str, bytes]) -> Optional[Record]:
    """The JSON object of a line. None if the line is incomplete or holds anything else."""
    if isinstance(line, bytes):
        line = line.decode("utf-8", "replace")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def parse_lines(lines: Iterable[Union[str, bytes]]) -> Iterator[Record]:
    """The JSON objects of all complete lines."""
    for line in lines:
        record = parse_line(line)
        if record is not None:
            yield record


def read_json_lines(path: Name) -> Iterator[Record]:
    """The JSON objects of all complete lines of a file.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path, "r", encoding="utf-8", errors="replace") as file:
        yield from parse_lines(file)


def find_in_order(path: Name, key: str, number: int) -> Optional[Record]:
    """The line whose `key` has this number, in a file that is sorted by it. None if none is found.

    It reads some twenty lines of a file of any length. Each of thousands of jobs looks for its own
    line.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        low, high = 0, file.seek(0, os.SEEK_END)  # the line begins at or after low, before high
        while low < high:
            middle = (low + high) // 2
            file.seek(max(0, middle - 1))
            if middle:
                file.readline()  # to the first line that begins at or after the middle
            start = file.tell()
            record = parse_line(file.readline()) if start < high else None
            if start >= high:
                high = middle
            elif record is None or not isinstance(record.get(key), int):
                return None
            elif record[key] == number:
                return record
            elif record[key] < number:
                low = file.tell()
            else:
                high = middle
    return None


def last_lines(path: Name, count: int, is_wanted: Callable[[str], bool] = lambda line: True) -> str:
    """The last lines of a text file, or of its wanted lines.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path, "r", encoding="utf-8", errors="replace") as file:
        return "".join(deque(filter(is_wanted, file), maxlen=count))
