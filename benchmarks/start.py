"""Measure short runs of the local queue: ranks forked from a warm process, or fresh processes.

    python benchmarks/start.py [--pairs 5]     ten minutes

Both ways alternate, on one core, and final parameters must be equal. Goals: a forked run takes at
least 5 s less, and at most 4 s of CPU beside its steps.

Time: from the start of a run to its end, as its attempt records it, for 20 steps of a small
network. Of the forked runs the first one waits for the imports, and is shown apart.

CPU: user and system time of a whole `furnace submit` of three runs: of itself, the warm process,
all ranks, and the tables at the end. It is taken with 20 and with 120 steps. The straight line
through both gives the CPU at 0 steps, and a third of that is the CPU of a run beside its steps.
Evaluations and checkpoints come with the steps. The end of a run is beside them. The nine runs of
another submit share its work and that of the warm process, so the difference is the CPU of a
further run.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import record  # noqa: E402
from local_study import command, write_grid  # noqa: E402

from furnace_hpc.data.sets.tridigits.pack import pack  # noqa: E402
from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs  # noqa: E402
from furnace_hpc.launch.local_ranks.jobs import FRESH  # noqa: E402

RUNS, MANY_RUNS = 3, 9
STEPS, MANY_STEPS = 20, 120
GOAL_S, GOAL_CPU_S = 5.0, 4.0
WAYS = {"fresh": "1", "forked": ""}  # values of FRESH


class Submitted(NamedTuple):
    """What one `furnace submit` took."""

    wall_s: list[float]  # of each run, in the order of their starts
    hashes: list[str]
    cpu_s: float  # of all processes together


class Pair(NamedTuple):
    """Submits of one way: three runs, the same with more steps, and more runs."""

    short: Submitted
    long: Submitted
    many: Submitted | None  # of forked runs only

    @property
    def step_cpu_s(self) -> float:
        """CPU of a step, with its part of evaluations and checkpoints."""
        return (self.long.cpu_s - self.short.cpu_s) / (RUNS * (MANY_STEPS - STEPS))

    @property
    def beside_steps_s(self) -> float:
        """CPU of a run beside its steps, with its part of the submit and of the warm process."""
        return self.short.cpu_s / RUNS - STEPS * self.step_cpu_s

    @property
    def further_s(self) -> float:
        """CPU beside its steps of a run that comes after others."""
        assert self.many
        more_s = (self.many.cpu_s - self.short.cpu_s) / (MANY_RUNS - RUNS)
        return more_s - STEPS * self.step_cpu_s


def main() -> None:
    """Run the pairs and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    record.begin()
    found: dict[str, list[Pair]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        pack(TriDigitsKnobs(train=240, val=60, test=90), place / "data" / "tridigits", _silent)
        for number in range(pairs):
            for way in WAYS:
                found[way].append(_pair(place, way, number))
            fresh, forked = found["fresh"][-1], found["forked"][-1]
            assert fresh.short.hashes == forked.short.hashes
            assert fresh.long.hashes == forked.long.hashes
            assert forked.many
            assert forked.many.hashes[:RUNS] == forked.short.hashes
    note = f"{pairs} pairs of {RUNS} runs, one at a time, alternating"
    record.write("start", [_time_row(found), _cpu_row(found)], note)


def _time_row(found: dict[str, list[Pair]]) -> dict[str, Any]:
    fresh_s = _median(time_s for pair in found["fresh"] for time_s in pair.short.wall_s)
    forked_s = _median(time_s for pair in found["forked"] for time_s in pair.short.wall_s[1:])
    saved_s = round(fresh_s - forked_s, 2)
    return {
        "what": f"a run of {STEPS} steps, seconds (median)",
        "fresh process": fresh_s,
        "forked": forked_s,
        "forked, first run of a server": _median(pair.short.wall_s[0] for pair in found["forked"]),
        "saved_s": saved_s,
        "goal": GOAL_S,
        "reached": saved_s >= GOAL_S,
    }


def _cpu_row(found: dict[str, list[Pair]]) -> dict[str, Any]:
    forked_s = _median(pair.beside_steps_s for pair in found["forked"])
    return {
        "what": f"CPU of one of {RUNS} runs beside its steps, seconds (median)",
        "fresh process": _median(pair.beside_steps_s for pair in found["fresh"]),
        "forked": forked_s,
        "forked, each further run": _median(pair.further_s for pair in found["forked"]),
        "of a step, fresh process": _median((pair.step_cpu_s for pair in found["fresh"]), 4),
        "of a step, forked": _median((pair.step_cpu_s for pair in found["forked"]), 4),
        "goal": GOAL_CPU_S,
        "reached": forked_s <= GOAL_CPU_S,
    }


def _median(values: Iterable[float], digits: int = 2) -> float:
    return round(statistics.median(values), digits)


def _pair(place: Path, way: str, number: int) -> Pair:
    """Submit the runs of one way. Of fresh processes each further run takes as much as the last."""
    root = f"{way}-{number}"
    short = _submit(place, STEPS, RUNS, root, WAYS[way])
    long = _submit(place, MANY_STEPS, RUNS, root, WAYS[way])
    is_forked = way == "forked"
    return Pair(
        short, long, _submit(place, STEPS, MANY_RUNS, root, WAYS[way]) if is_forked else None
    )


def _submit(place: Path, steps: int, number: int, root: str, fresh: str) -> Submitted:
    """Train this number of runs, one at a time. They differ in the weight of a term of the loss."""
    folder = place / f"{number}-runs-{steps}-steps"
    folder.mkdir(exist_ok=True)
    rows = ["first: {}", *(f"beta_{n}: {{loss.beta: 0.{n}}}" for n in range(1, number))]
    grid = write_grid(folder, steps, f"{{{', '.join(rows)}}}")
    one_core = {min(os.sched_getaffinity(0))}
    before_s = _cpu_s()
    subprocess.run(
        command(grid, place / "data", "--runs-root", root),
        cwd=folder,
        env=os.environ | {FRESH: fresh},
        check=True,
        capture_output=True,
        preexec_fn=lambda: os.sched_setaffinity(0, one_core),
    )
    cpu_s = _cpu_s() - before_s
    runs = []
    for run in (folder / root / "local").glob("*-s0-*"):
        attempt = json.loads((run / "attempts" / "1.json").read_text())
        result = json.loads((run / "result.json").read_text())
        start_s, end_s = attempt["start_unix_s"], attempt["end_unix_s"]
        runs.append((start_s, end_s - start_s, result["parameters_sha256"]))
    _, wall_s, hashes = map(list, zip(*sorted(runs), strict=True))
    assert len(runs) == number
    return Submitted(wall_s, hashes, cpu_s)


def _cpu_s() -> float:
    """CPU of all processes below this one that have ended. Each was waited for by its parent."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _silent(what: str, done: int, total: int) -> None:
    """Show no progress."""


if __name__ == "__main__":
    main()
