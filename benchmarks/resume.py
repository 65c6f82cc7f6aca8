"""Kill runs with SIGKILL at random points, resume them, and compare with undisturbed runs.

    python benchmarks/resume.py --points 200 --work DIR     resumes; the seed selects the points

ZeRO 1, 2, 3 x 1 and 2 processes, bf16 with dropout. Equal means bit-identical final parameters,
loss and validation curves and kept predictions, and the same samples in every rank, step and
micro-step.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import record  # noqa: E402
from killed_ranks import RENAMES, SYNCS, Point, run_attempt  # noqa: E402
from killed_run import differences, new_run, repeated_steps  # noqa: E402

STAGES, SIZES, STEPS, MOST_ATTEMPTS = (1, 2, 3), (1, 2), 12, 6
# Shares of the points. A save syncs about ten files and folders, so it has many points.
KINDS = {
    "train": 6,
    "evaluation": 4,
    "copy": 3,
    "save": 8,
    "rename": 4,
    "delete": 1,
    "result": 1,
    "time": 3,
    "start": 1,
}
BY_ANY_RANK = ("start", "train", "evaluation", "copy", "save")
INSIDE = ("copy", "save", "rename", "delete")


def main() -> None:
    """Run the points that are not in the log yet, then write the results of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=200, help="total number of points")
    parser.add_argument("--seed", type=int, default=0, help="seed of the points")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the log and the undisturbed runs; kept"
    )
    parser.add_argument(
        "--for",
        dest="for_s",
        type=float,
        default=540,
        help="seconds; the same command resumes later",
    )
    asked = parser.parse_args()
    record.begin()
    work, began_s = asked.work.resolve(), time.monotonic()
    data = work / "data"
    if not data.exists():
        # not at the top, because every forked rank imports this file
        from furnace_hpc.data.sets.tridigits.pack import pack
        from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs

        pack(TriDigitsKnobs(train=96, val=40, test=40), data, lambda what, done, total: None)
    log = work / f"points-{asked.seed}.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for number in range(len(done), asked.points):
        if time.monotonic() - began_s > asked.for_s:
            break
        done.append(_one(work, data, asked.seed, number))
        with log.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        print(json.dumps(done[-1]), flush=True)
    rows = _rows(done)
    note = f"seed {asked.seed}; {len(done)} of the {asked.points} points asked for; "
    record.write(
        "resume",
        rows,
        note + f"{sum(row['seconds'] for row in done):.0f} s in all, undisturbed runs not counted",
    )


def _one(work: Path, data: Path, seed: int, number: int) -> dict[str, Any]:
    """Kill one run at a random point and resume it until it is done.

    One of four runs is also killed at a second point.
    """
    draw = random.Random(f"{seed}/{number}")
    stage, size = STAGES[number % 3], SIZES[number // 3 % 2]
    calm, calm_s = _undisturbed(work, data, stage, size)
    points = [_point(draw, size, calm_s) for _ in range(draw.choice((1, 1, 1, 2)))]
    folder, started_s = new_run(work / "killed", data, stage, size, STEPS), time.monotonic()
    attempts, killed = 0, []
    while not (folder / "result.json").exists() and attempts < MOST_ATTEMPTS:
        point = points[attempts] if attempts < len(points) else None
        attempts += 1
        _, ranks = run_attempt(folder, data, size, point)
        killed.append(bool(ranks))
    differs = differences(folder, calm)
    answer = {
        "number": number,
        "stage": stage,
        "processes": size,
        "points": [asdict(point) for point in points],
        "killed": killed[: len(points)],
        "attempts": attempts,
        "repeated_steps": repeated_steps(folder),
        "differs": differs,
        "seconds": round(time.monotonic() - started_s, 2),
    }
    if differs:
        shutil.copytree(folder, work / f"differs-{seed}-{number}", dirs_exist_ok=True)
    return answer


def _point(draw: random.Random, size: int, calm_s: float) -> Point:
    [kind] = draw.choices(list(KINDS), weights=list(KINDS.values()))
    rank = draw.randrange(size) if kind in BY_ANY_RANK else 0
    nth = {
        "train": draw.randint(1, STEPS),
        "evaluation": draw.randint(1, 6),
        "copy": draw.randint(1, 20),
        "save": draw.randint(1, 30),
        "rename": draw.randint(1, 4),
        "delete": draw.randint(1, 2),
    }
    how = draw.choice({"save": SYNCS, "rename": RENAMES, "result": RENAMES}.get(kind, ("",)))
    seconds = draw.uniform(0, calm_s) if kind == "time" else draw.uniform(0, 0.04)
    return Point(kind, nth.get(kind, 1), rank, how, round(seconds, 4), round(draw.random(), 3))


def _undisturbed(work: Path, data: Path, stage: int, size: int) -> tuple[Path, float]:
    """The undisturbed run of this shape and its seconds. Made on the first call."""
    place = work / "calm" / f"{stage}-{size}"
    if not (place / "seconds").exists():
        folder, started_s = new_run(place, data, stage, size, STEPS), time.monotonic()
        run_attempt(folder, data, size, None)
        assert (folder / "result.json").exists(), (
            f"the undisturbed run in {folder} failed: see its logs"
        )
        (place / "seconds").write_text(str(time.monotonic() - started_s))
    [folder] = place.glob("z*")
    return folder, float((place / "seconds").read_text())


def _rows(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per kind of the (first) point, per shape, and for all."""
    groups: dict[str, list[dict[str, Any]]] = {"all": done}
    for row in done:
        groups.setdefault(f"ZeRO {row['stage']}, processes {row['processes']}", []).append(row)
        groups.setdefault(f"first killed at {row['points'][0]['kind']}", []).append(row)
    answer = []
    for name, rows in groups.items():
        hit = [row for row in rows if any(row["killed"])]
        inside = sum(
            point["kind"] in INSIDE
            for row in hit
            for point, killed in zip(row["points"], row["killed"], strict=False)
            if killed
        )
        answer.append(
            {
                "runs": name,
                "killed": len(hit),
                "done before its point came": len(rows) - len(hit),
                "kills inside a save, rename or deletion": inside,
                "equal": sum(not row["differs"] for row in hit),
                "differs": dict(Counter(what for row in rows for what in row["differs"])),
                "most steps repeated": max((row["repeated_steps"] for row in rows), default=0),
            }
        )
    return answer


if __name__ == "__main__":
    main()
