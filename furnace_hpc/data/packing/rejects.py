"""Records of files that could not be used, one line each in `refused.jsonl`."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from furnace_hpc.config.parsing.text_safety import printable

MAX_DETAIL = 300  # characters. Some errors quote the file.

Reason = Literal[
    "missing",  # there is no such file or entry
    "empty",
    "truncated",
    "unreadable",  # another format, or an error of the disk
    "not finite",
    "outside the file",  # a segment of a sound
    "no label",
    "nothing left",  # no modality of the sample could be read
]


class Unusable(Exception):
    """A file cannot be used. Its modality is missing from the sample."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        # Both are needed: pickle makes the exception again from these arguments.
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Refusal:
    """One line of `refused.jsonl`."""

    split: str
    sample: str
    modality: str | None
    file: str
    reason: Reason
    detail: str
    kept: bool
    """Whether the sample is in the pack with its other modalities."""

    def line(self) -> bytes:
        """Return the line with its newline: valid JSON of valid Unicode."""
        sample = self.sample.encode(errors="backslashreplace").decode()
        file, detail = printable(self.file), printable(" ".join(self.detail[:MAX_DETAIL].split()))
        content = asdict(self) | {"sample": sample, "file": file, "detail": detail}
        return json.dumps(content, ensure_ascii=False, sort_keys=True).encode() + b"\n"


def reasons_of(content: bytes, split: str | None = None) -> dict[str, int]:
    """Count the lines of a `refused.jsonl` by `modality reason`, for all splits or one."""
    counts: dict[str, int] = {}
    for line in content.splitlines():
        entry = json.loads(line)
        if split and entry["split"] != split:
            continue
        key = f"{entry['modality'] or 'sample'} {entry['reason']}"
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items()))
