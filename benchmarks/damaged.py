"""Load damaged checkpoints with Furnace's engine and with DeepSpeed's own load_checkpoint.

    python benchmarks/damaged.py      some minutes

There are two checkpoints of one training, and the newer one is damaged in one way. It counts as
recovered if all ranks load the whole older one. Goals: Furnace recovers all, and DeepSpeed none.
Furnace runs at ZeRO 1, 2, 3 with 1 and 2 processes. DeepSpeed runs at ZeRO 2 with 2 processes. Each
of its loads has new ranks, because one that fails leaves its peers waiting.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import forked_ranks  # noqa: E402
import record  # noqa: E402
from damage import ALL, OF_FILES  # noqa: E402
from damaged_work import GOOD, NEWEST  # noqa: E402


def main() -> None:
    """Run both engines and write the rows."""
    record.begin()
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = _ours(Path(folder) / "ours"), _theirs(Path(folder) / "theirs")
    rows: list[dict[str, Any]] = []
    for damage in ALL:
        mine = [answer for answer in ours if answer["damage"] == damage]
        good = sum(answer["state"] == {"step": GOOD} and answer["is"] == [GOOD] for answer in mine)
        row = {
            "damage": damage,
            "shapes": len(mine),
            "recovered": good,
            "deepspeed": theirs.get(damage, "no manifest"),
        }
        rows.append(row | {"goal": len(mine), "reached": good == len(mine)})
    total = sum(row["recovered"] for row in rows)
    lost = sum(answer == "recovered" for answer in theirs.values())
    took = f"{time.perf_counter() - started_s:.0f} s in all"
    record.write(
        "damaged",
        rows,
        f"{total} of {len(ours)} recovered; DeepSpeed {lost} of {len(theirs)}; {took}",
    )


def _ours(folder: Path) -> list[dict[str, Any]]:
    phases = []
    for size in (1, 2):
        cases = []
        for stage in (1, 2, 3):
            place = {"source": f"stage {stage} of {size}", "stage": stage}
            harms = [harm for harm in ALL if size > 1 or harm != "two ranks' files swapped"]
            cases += [
                {"do": "make"} | place,
                *({"do": "load", "damage": harm} | place for harm in harms),
            ]
        phases.append((size, cases))
    return [
        answer
        for answer in forked_ranks.run_phases(folder, "damaged_work", phases)
        if "damage" in answer
    ]


def _theirs(folder: Path) -> dict[str, str]:
    """Damage -> result of DeepSpeed's own load_checkpoint."""
    place = {"source": "theirs", "stage": 2, "theirs": True}
    forked_ranks.run_phases(folder / "made", "damaged_work", [(2, [{"do": "make"} | place])])
    found = {}
    for number, damage in enumerate(OF_FILES):
        there = folder / str(number)
        there.mkdir()
        for name in ("theirs", *(f"theirs-{step}.pt" for step in (GOOD, NEWEST))):
            (there / name).symlink_to(folder / "made" / name)
        try:
            cases = [{"do": "load", "damage": damage} | place]
            [answer] = forked_ranks.run_phases(there, "damaged_work", [(2, cases)])
            found[damage] = _said(answer)
        except AssertionError as error:
            lines = [
                line
                for line in str(error).splitlines()
                if "Error" in line and not line.startswith("E  ")
            ]
            said = lines[-1].strip().replace(str(folder), "DIR") if lines else ""
            found[damage] = f"raises: {said[:120]}" if said else "hangs"
    return found


def _said(answer: dict[str, Any]) -> str:
    if answer["is"] == [GOOD]:
        return "recovered"
    if answer["state"] is None:
        return "loads nothing, with a warning: the run begins at step 0"
    return (
        "loads a state that was never saved, without a word"
        if not answer["is"]
        else "takes no harm"
    )


if __name__ == "__main__":
    main()
