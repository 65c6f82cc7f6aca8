"""What a packed file could not give: why, from which file; one line each in `refused.jsonl`."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from furnace_hpc.config.parsing.text_safety import printable

MAX_DETAIL = 300  # characters; some errors quote the file

Reason = Literal[
    "missing",  # there is no such file, or no such entry
    "empty",
    "truncated",
    "unreadable",  # not what its name says, or the disk does not give it
    "not finite",
    "no label",
    "nothing left",  # no modality of the sample could be read
]


class Unusable(Exception):
    """This file gives nothing: its modality is absent from the sample."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        # both: an exception that crosses processes is made again from its arguments
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
    kept: bool  # whether the sample is in the pack all the same, by its other modalities

    def line(self) -> bytes:
        """The line, with its end: valid JSON of valid Unicode, whatever the names and errors hold."""
        sample = self.sample.encode(errors="backslashreplace").decode()
        file, detail = printable(self.file), printable(" ".join(self.detail[:MAX_DETAIL].split()))
        content = asdict(self) | {"sample": sample, "file": file, "detail": detail}
        return json.dumps(content, ensure_ascii=False, sort_keys=True).encode() + b"\n"


def reasons_of(content: bytes, split: str | None = None) -> dict[str, int]:
    """Count the lines of a `refused.jsonl`, of all splits or of one, by `modality reason`."""
    counts: dict[str, int] = {}
    for line in content.splitlines():
        entry = json.loads(line)
        if split and entry["split"] != split:
            continue
        key = f"{entry['modality'] or 'sample'} {entry['reason']}"
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items()))
