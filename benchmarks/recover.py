"""Measure what a disturbance costs: seconds to recovery or to detection, and repeated steps.

    python benchmarks/recover.py     about ten minutes
    python benchmarks/recover.py --drill local devcluster     also drills; devcluster needs root

Killed: `furnace submit` and all ranks of a run in the local queue get SIGKILL, and the command is
run again. The time is from the kill to the first new step. The floor is the necessary work: as many
new processes import torch, DeepSpeed and the network's libraries, connect, build the same engine
and make one step. Both take turns. Frozen: one of two ranks gets SIGSTOP. All processes of the run
must end within the configured time and 5 s. Steps: those that `furnace drill` reports as repeated.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parent.parent / "tests" / "support"))

import record  # noqa: E402
from killed_run import new_run  # noqa: E402
from local_study import attempt, command, run_folder, wait_for_step, write_grid  # noqa: E402
from slurm_cluster import start_cluster  # noqa: E402

from furnace_hpc.data.sets.tridigits.pack import pack  # noqa: E402
from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs  # noqa: E402
from furnace_hpc.launch.local_ranks.jobs import ranks_of  # noqa: E402

HANG_S, DRILL_SEED = 10, 7


def main() -> None:
    """Measure and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--drill", nargs="*", default=[], choices=("local", "devcluster"), help="also drill there"
    )
    parser.add_argument("--rounds", type=int, default=5, help="kills of each kind, and floors")
    asked = parser.parse_args()
    record.begin()
    with tempfile.TemporaryDirectory(prefix="fb") as folder:
        place = Path(folder)
        pack(
            TriDigitsKnobs(train=96, val=40, test=40),
            place / "data/tridigits",
            lambda what, done, total: None,
        )
        rows = [_killed(place, size, asked.rounds) for size in (1, 2)]
        rows.append(_frozen(place))
        if "local" in asked.drill:
            rows += _drilled(place, "local", {})
        if "devcluster" in asked.drill:
            cluster = start_cluster(place / "c")
            try:
                rows += _drilled(place, "devcluster", dict(cluster.environment))
            finally:
                cluster.down()
    record.write("recover", rows, f"medians of {asked.rounds}; drills with seed {DRILL_SEED}")


def _killed(place: Path, size: int, rounds: int) -> dict[str, Any]:
    ours, floor = [], []
    for number in range(rounds):
        floor.append(_floor(place / f"floor-{size}-{number}", place / "data/tridigits", size))
        ours.append(_kill_and_go_on(place / f"killed-{size}-{number}", place / "data", size))
    ratio = statistics.median(ours) / statistics.median(floor)
    return {
        "what": f"SIGKILL to the first new step, {size} processes",
        "ours_s": round(statistics.median(ours), 2),
        "floor_s": round(statistics.median(floor), 2),
        "ratio": round(ratio, 2),
        "all": [round(value, 2) for value in ours],
        "goal": 1.3,
        "reached": ratio <= 1.3,
    }


def _kill_and_go_on(place: Path, data: Path, size: int) -> float:
    place.mkdir()
    grid = write_grid(place, 400, "{first: {}}")
    words = command(
        grid, data, "--set", f"resources.processes_per_node={size}", "--set", "deepspeed=zero2"
    )
    quiet: dict[str, Any] = {
        "cwd": place,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    first = psutil.Popen(words, **quiet)
    wait_for_step(grid, "first", 13)
    victims = [*first.children(recursive=True), first]
    killed_s = time.time()
    for victim in victims:
        victim.kill()
    psutil.wait_procs(victims, timeout=10)
    again = psutil.Popen(words, **quiet)
    metrics = run_folder(grid, "first") / "metrics/2.jsonl"
    while not (metrics.exists() and b"\n" in metrics.read_bytes()):
        time.sleep(0.05)
    new_step = json.loads(metrics.read_text().splitlines()[0])
    _end(again)
    return float(new_step["time_unix_s"]) - killed_s


def _floor(place: Path, data: Path, size: int) -> float:
    folder = new_run(place, data, stage=2, size=size, steps=400)
    began_s = time.time()
    words = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(HERE.parent)!r}); import recover; recover.rank()",
    ]
    ranks = [
        subprocess.Popen(
            [*words, str(rank), str(size), str(folder), str(data)], stderr=subprocess.DEVNULL
        )
        for rank in range(size)
    ]
    assert [rank.wait() for rank in ranks] == [0] * size
    return float((folder / "stepped").read_text()) - began_s


def rank() -> None:
    """One process of the floor. Arguments: RANK SIZE RUN_DIR DATA_DIR."""
    number, size, folder, data = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    from furnace_hpc.engine.loop import train_batches, train_step
    from furnace_hpc.engine.ranks.distributed import RankInfo, init_process_group
    from furnace_hpc.engine.ranks.stop import StopRequest
    from furnace_hpc.engine.ranks.watchdog import Watchdog
    from furnace_hpc.engine.setup import set_up
    from furnace_hpc.host import lifecycle
    from furnace_hpc.runs.code import code_hash
    from furnace_hpc.runs.folder import RunFolder
    from furnace_hpc.runs.records.verdict import RankVerdict

    if number == 0:
        facts = {"code_hash": code_hash(), "world_size": size, "data_dir": data, "overrides": {}}
        lifecycle.begin(str(folder), facts)
    processes = init_process_group(RankInfo(number, number, size, folder / "rendezvous"))
    run_folder = RunFolder(folder)
    watchdog = Watchdog.for_run(run_folder, 1, RankVerdict(run_folder, 1, number))
    run = set_up(run_folder, 1, processes, watchdog, StopRequest())
    with train_batches(run.engine, run.reader, run.config, processes) as batches:
        train_step(run.engine, batches, run.config, 0)
    if number == 0:
        (folder / "stepped").write_text(str(time.time()))
    sys.stdout.flush()
    processes.barrier()
    os._exit(0)


def _frozen(place: Path) -> dict[str, Any]:
    times = []
    for number in range(3):
        here = place / f"frozen-{number}"
        here.mkdir()
        grid = write_grid(here, 400, "{first: {}}")
        options = ("--set", "resources.processes_per_node=2", "--set", f"hang_timeout_s={HANG_S}")
        queue = psutil.Popen(
            command(grid, place / "data", *options), cwd=here, stderr=subprocess.DEVNULL
        )
        wait_for_step(grid, "first", 13)
        children = queue.children(recursive=True)
        stopped = ranks_of(attempt(run_folder(grid, "first"), 1)["holder"]["pid"])[1]
        since_s = time.monotonic()
        stopped.send_signal(signal.SIGSTOP)
        _, alive = psutil.wait_procs(children, timeout=HANG_S + 60)
        times.append(time.monotonic() - since_s)
        queue.wait(60)
        assert not alive
        assert attempt(run_folder(grid, "first"), 1)["reason"] == "hang"
    slowest = max(times)
    return {
        "what": f"SIGSTOP of one of two ranks until all are gone, configured {HANG_S} s; "
        "slowest of 3",
        "ours_s": round(slowest, 2),
        "torch's default_s": 600,
        "goal": HANG_S + 5,
        "reached": slowest <= HANG_S + 5,
    }


def _drilled(place: Path, cluster: str, environment: dict[str, str]) -> list[dict[str, Any]]:
    words = [
        "--cluster",
        cluster,
        "--seed",
        str(DRILL_SEED),
        "--runs-root",
        str(place / f"drill-{cluster}"),
    ]
    words += ["--data-root", str(place / "drill-data")]
    subprocess.run(
        [sys.executable, "-m", "furnace_hpc.drill", *words],
        env=os.environ | environment,
        check=False,
    )
    [path] = (place / f"drill-{cluster}").glob("drills/*/drill.json")
    return [
        {
            "what": f"drill on {cluster}: {outcome['what']}",
            "steps lost": outcome["lost_steps"],
            "back after_s": round(outcome["back_s"] or 0),
            "result": outcome["problem"] or "identical",
            "goal": 1 if outcome["warned"] else 25,
            "reached": not outcome["problem"]
            and outcome["lost_steps"] <= (1 if outcome["warned"] else 25),
        }
        for outcome in json.loads(path.read_text())
    ]


def _end(process: psutil.Popen) -> None:
    for victim in [*process.children(recursive=True), process]:
        victim.kill()


if __name__ == "__main__":
    main()
