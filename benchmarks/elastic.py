"""Load checkpoints of every (processes, ZeRO stage) at every other, and compare the next losses.

    python benchmarks/elastic.py

Goal: equal state, and the next 4 losses within 1e-6 of the undisturbed run in fp32. The shapes are
1, 2, 4 processes x stages 1, 2, 3, which makes 81 pairs, in fp32 and in bf16. The network is small
and has BatchNorm, a shared weight and three parameter groups. Then the real network and offloading
follow.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import forked_ranks
from elastic_work import OFFLOADED, case

SIZES, STAGES, GOAL = (1, 2, 4), (1, 2, 3), 1e-6
# eps: otherwise Adam makes whole steps from the rounding of a gradient of 0 (the bias of a key).
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "fp32, real network": {"fusion": True, "eps": 1e-4},
}


def main() -> None:
    """Write all checkpoints, load each at all shapes, and write one row per pair."""
    record.begin()
    forked_ranks.START_S = 1800  # a busy machine needs more time than a test may take
    shapes = [(size, stage) for size in SIZES for stage in STAGES]
    made = {
        (kind, *shape): f"{kind}, stage {shape[1]} of {shape[0]}"
        for kind in KINDS
        for shape in shapes
    }
    made = {
        key: source
        for key, source in made.items()
        if key[0] != "fp32, real network" or key[1:] == (2, 2)
    }
    phases = [
        (
            size,
            [
                case("make", made[key], key[2], kind=key[0], **KINDS[key[0]])
                for key in made
                if key[1] == size
            ],
        )
        for size in SIZES
    ]
    phases[1][1].append(_offloaded("make", "bf16, stage 3 of 2, offloaded"))
    for size in SIZES:
        loads = [
            case("resume", made[key], stage, kind=key[0], **KINDS[key[0]])
            for key in made
            for stage in STAGES
        ]
        loads += [_offloaded("resume", f"bf16, stage {stage} of 2") for stage in STAGES]
        loads.append(_offloaded("resume", "bf16, stage 3 of 2, offloaded"))
        loads += [
            case("resume", "bf16, stage 3 of 2, offloaded", stage, kind="bf16", precision="bf16")
            for stage in STAGES
        ]
        phases.append((size, loads))
    with tempfile.TemporaryDirectory() as folder:
        started_s = time.perf_counter()
        answers = forked_ranks.run_phases(Path(folder), "elastic_work", phases)
        wall_s = time.perf_counter() - started_s
    rows = [_row(answer) for answer in answers if answer["do"] == "resume"]
    fp32 = [row for row in rows if "goal" in row]
    summary = f"{sum(row['state_equal'] for row in rows)} of {len(rows)} loads equal; "
    summary += f"{sum(row['reached'] for row in fp32)} of {len(fp32)} reached the goal; "
    summary += f"{wall_s:.0f} s in all. "
    record.write(
        "elastic", rows, summary + "bf16 at another number of processes rounds gradients otherwise"
    )


def _offloaded(do: str, source: str) -> dict[str, Any]:
    return case(do, source, 3, kind="bf16, offloaded", precision="bf16", zero=OFFLOADED)


def _row(answer: dict[str, Any]) -> dict[str, Any]:
    equal = (
        set(answer["differences"].values()) == {0.0}
        and answer["same_groups"]
        and answer["adam_steps"] == [7.0]
    )
    row = {
        "from": answer["source"],
        "to": f"{answer['kind']}, stage {answer['stage']} of {answer['processes']}",
        "state_equal": equal,
        "loss_difference": answer["loss_difference"],
    }
    if "precision" not in answer:
        row |= {"goal": GOAL, "reached": equal and answer["loss_difference"] <= GOAL}
    return row


if __name__ == "__main__":
    main()
