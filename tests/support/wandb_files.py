"""Read the file of a W&B run with W&B's own messages. Its blocks are those of LevelDB's log."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK, FILE_HEADER, HEADER = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator:
    """The records of a file, as messages of W&B's library."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = path.read_bytes(), FILE_HEADER, []
    assert content[:4] == b":W&B"
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block is filled with zeros
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + HEADER])
        parts.append(content[at + HEADER : at + HEADER + length])
        at += HEADER + length
        if kind in (FULL, LAST):
            yield Record.FromString(b"".join(parts))
            parts = []


def points(path: Path) -> list[tuple[str, int, float]]:
    """(name, step, number) of all lines of the history, in order."""
    found = []
    for record in records(path):
        if record.WhichOneof("record_type") != "history":
            continue
        line = {_name(item): json.loads(item.value_json) for item in record.history.item}
        step = line.pop("_step")
        found += [(name, step, value) for name, value in line.items() if not name.startswith("_")]
    return found


def summary(path: Path) -> dict[str, object]:
    """The summary at the end."""
    found = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "summary":
            found |= {_name(item): json.loads(item.value_json) for item in record.summary.update}
    return found


def run_record(path: Path):
    """The message with id, tags and config."""
    return next(r.run for r in records(path) if r.WhichOneof("record_type") == "run")


def _name(item) -> str:
    return item.key or ".".join(item.nested_key)
