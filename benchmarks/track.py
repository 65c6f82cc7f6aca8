"""Time `furnace track` for 1,000 runs of 50 metric lines, and again with nothing new.

    python benchmarks/track.py [--runs 1000] [--to tensorboard] [--at PLACE]

Each pass is a whole process. For MLflow, start a server and give its address with --at. W&B writes
offline folders. Then one run gets ten lines, and a third pass sends them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import record
from tracked_study import TrainedRun, make_runs

from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.runs.folder import GridFolder

LINES = 50  # 42 of training and 8 of validation
STEPS = 420
SEEDS = 5
GOAL_S, GOAL_AGAIN_S = 20.0, 2.0


def main() -> None:
    """Lay out the runs, time three passes, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="a multiple of 5 [1000]")
    parser.add_argument("--to", default="tensorboard", help="the tracker [tensorboard]")
    parser.add_argument("--at", default="", help="folder or address of the tracker")
    asked = parser.parse_args()
    record.begin()
    with tempfile.TemporaryDirectory() as name:
        folder, runs = lay_out(Path(name), asked.runs)
        command = [sys.executable, "-m", "furnace_hpc", "track", "--grid", folder.path.name]
        command += ["--to", asked.to, "--runs-root", str(folder.path.parent)]
        command += ["--at", asked.at] if asked.at else []
        command += ["--offline"] if asked.to == "wandb" else []
        first_s, first_cpu_s, said = timed(command)
        assert f"sent {LINES * asked.runs:,} records of {asked.runs:,} runs" in said, said
        again_s, again_cpu_s, said = timed(command)
        assert "nothing new" in said, said
        runs[0].begin()
        runs[0].step = STEPS
        runs[0].train(80)
        more_s, more_cpu_s, said = timed(command)
        assert "of 1 run" in said, said
    what = f"{asked.to}: {asked.runs:,} runs of {LINES} lines"
    record.write(
        f"track_{asked.to}",
        [
            row(what, first_s, first_cpu_s) | {"goal_s": GOAL_S},
            row("again, nothing new", again_s, again_cpu_s) | {"goal_s": GOAL_AGAIN_S},
            row("again, one run has new lines", more_s, more_cpu_s),
        ],
        "Whole processes of `furnace track`. "
        f"Load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
    )


def lay_out(root: Path, number: int) -> tuple[GridFolder, list[TrainedRun]]:
    """Write finished runs of a grid with one swept key."""
    content = {
        "name": "study",
        "base": {"deepspeed": "zero1", "steps": STEPS},
        "seeds": list(range(SEEDS)),
        "reference": "base",
        "metric": "test/digit/accuracy",
        "variants": {"base": {}}
        | {f"row{n}": {"loss.alpha": n / 10_000} for n in range(1, number // SEEDS)},
    }
    folder, _ = make_runs(root, 0)
    (folder.submissions / "1").mkdir(parents=True)
    specs = expand(Grid.model_validate(content), {"tridigits": "feedfeedfeedfeed"})
    runs = [TrainedRun(spec, folder.run(spec.run_id)) for spec in specs]
    for run in runs:
        run.begin()
        run.train(STEPS)
        run.finish()
    lines = [line for run in runs[:1] for line in run.folder.metrics(1).read_text().splitlines()]
    assert len(runs) == number
    assert len(list(map(json.loads, lines))) == LINES
    return folder, runs


def timed(command: list[str]) -> tuple[float, float, str]:
    """Seconds of a whole process, those of a core, and what it printed."""
    before, started_s = cpu_s(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    took_s = time.perf_counter() - started_s
    assert done.returncode == 0, done.stderr
    return took_s, cpu_s() - before, done.stdout


def cpu_s() -> float:
    """Seconds of a core that all ended children have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row(what: str, took_s: float, used_s: float) -> dict[str, object]:
    """One row of the result."""
    return {"what": what, "s": round(took_s, 2), "cpu_s": round(used_s, 2)}


if __name__ == "__main__":
    main()
