"""Ctrl-C while a chunk is added to a pack."""

import json
import sys
from itertools import count

import numpy as np

from furnace_hpc.data.packing import resumable_writer
from furnace_hpc.data.packing.rendering import Rendered
from furnace_hpc.data.packing.resumable_writer import ResumableWriter
from furnace_hpc.data.packing.sample import PackPlan, blank_sample
from furnace_hpc.data.packing.statistics import Moments

ROWS = 8
BLANK = blank_sample(8, ("text",), text=np.zeros(4, np.int16))
PLAN = PackPlan(
    dataset="words",
    modalities=("text",),
    labels={},
    rows={"train": range(ROWS)},
    listed={"train": ROWS},
    blank=BLANK,
    render=lambda split, number: None,
    settings={},
)
CHUNK = Rendered(
    split="train",
    num_rows=ROWS,
    columns={name: np.stack([value] * ROWS) for name, value in BLANK.items()},
    refused_lines=b"{}\n",
    incomplete=1,
    moments={"image": Moments(4, [1.0], [2.0])},
)


def interrupted_at(line: int, writer: ResumableWriter) -> bool:
    """Append the chunk, and press Ctrl-C before the n-th line of it. False if it has fewer."""
    lines = count(1)

    def trace(frame, event, _):
        if frame.f_code.co_filename != resumable_writer.__file__:
            return None
        if event == "line" and next(lines) == line:
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        writer.append(CHUNK)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_ctrl_c_keeps_all_of_a_chunk_or_nothing(tmp_path):
    """Rows, samples, refusals and the sums for mean and deviation belong together."""
    nothing, everything = (0, 0, 0, 0, {}), (ROWS, ROWS, 1, 3, {"image": 4})
    found = []
    for line in count(1):
        writer = ResumableWriter(tmp_path / f"set{line}", PLAN)
        writer.begin(force=False)
        was_interrupted = interrupted_at(line, writer)
        writer.record()
        writer.close()
        content = json.loads((writer.folder / "progress.json").read_text())
        counts = [content[name]["train"] for name in ("rows", "kept", "incomplete")]
        moments = {name: each["count"] for name, each in content["moments"].items()}
        found.append((*counts, content["refused_bytes"], moments))
        if not was_interrupted:
            break
    assert len(found) > 15
    assert found[0] == nothing
    assert found[-1] == everything
    assert all(one in (nothing, everything) for one in found)
