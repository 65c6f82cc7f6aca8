"""Simulate 10,000 runs on 1,250 nodes of 8 GPUs, with failures at published rates.

    python benchmarks/scale.py [--runs 10000] [--nodes 1250]     ten minutes, no GPU and no Slurm

Planner, journal, states, follow-up jobs, host code and tables are the real ones. Slurm, the clock
and the training are simulated (scale_slurm.py, scale_runs.py): a run is one node for 6 to 10 hours,
with a checkpoint every half hour. Furnace is compared with two ways without retry and resume, whose
failed runs a person submits again from step 0:

* submitit: `map_array`, in arrays of MaxArraySize
* loop: one sbatch per run

There Slurm requeues jobs of lost nodes and preempted ones by itself (JobRequeue=1), and they start
at step 0. A job whose GPU or network failed has ended, until the person submits it again.

Rates of faults per 1,000 node-days:

* 2.3 InfiniteHBD-Trace (StepFun, SIGCOMM 2025): 322 hardware and software faults of 400 servers in
  348 days. Its 584 repairs took 0.85 days (median) and 5.5 days (mean), and 71 % of the faults with
  a cause were of GPUs, NICs and cables.
* 3.8 Llama 3 (Meta, 2024): 419 unexpected interruptions of 16,384 GPUs in 54 days.
* 6.5 Meta's RSC-1 (Kokolis et al., HPCA 2025): the rate behind its projected 1.8 hours between
  failures of a job on 16,384 GPUs.

The rate of preemptions is no published figure, but an assumption: one per run and two days.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import record  # noqa: E402
from pretend_slurm import install  # noqa: E402
from scale_runs import GPUS, FurnaceRuns, PlainRuns, Work  # noqa: E402
from scale_slurm import Clock, Rates, Slurm  # noqa: E402
from sizes import write_study  # noqa: E402

from furnace_hpc import aggregate, follow_up, submit  # noqa: E402
from furnace_hpc.host import lease  # noqa: E402
from furnace_hpc.runs.folder import GridFolder  # noqa: E402
from furnace_hpc.slurm import client, die_with_parent  # noqa: E402
from furnace_hpc.slurm.die_with_parent import Ended  # noqa: E402

PERSON_S = 8 * 3600.0  # until a person has seen that the jobs have ended, and submits again
MAX_ARRAY_SIZE = 1001
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV")  # of the environment
SUBMITIT_FILES = 4  # of a job: its pickles, and two logs
PROFILE: dict[str, Any] = {"nodes": 1, "processes_per_node": GPUS, "array_parallelism": 10_000}
PROFILE |= {"max_array_size": None}  # Slurm is asked
CASES = {
    "InfiniteHBD": Rates(2.3),
    "Llama 3": Rates(3.8),
    "RSC-1": Rates(6.5),
    "RSC-1 and preemptions": Rates(6.5, preemptions_per_day=0.5),
}


class Outcome(NamedTuple):
    """What became of all runs in one way."""

    done: int
    attempts: int
    slurm_calls: dict[str, int]
    files: int
    used_gpu_h: float
    hours: float  # until the table
    real_s: float  # of this machine, for all programs of the way
    missing_at_first: int = 0  # runs without result before the first submission by hand


def main() -> None:
    """Simulate each case in each way, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000, help="a multiple of 5 [10000]")
    parser.add_argument("--nodes", type=int, default=1250)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    asked = parser.parse_args()
    record.begin()
    chance = random.Random(1)
    work = Work(tuple(float(chance.randint(6 * 3600, 10 * 3600)) for _ in range(asked.runs)))
    useful = GPUS * sum(work.train_s) / 3600
    rows: list[dict[str, Any]] = []
    for name in asked.cases:
        for way, simulate in (("furnace", furnace), ("submitit", in_arrays), ("loop", in_loop)):
            outcome = simulate(work, asked.nodes, CASES[name])
            rows.append(row_of(name, way, outcome, useful))
            print(rows[-1], file=sys.stderr, flush=True)
    record.write("scale", rows, "Slurm, time and training are simulated; see scale.py.")


def row_of(case: str, way: str, outcome: Outcome, useful_gpu_h: float) -> dict[str, Any]:
    """The figures of one way."""
    calls = outcome.slurm_calls
    return {
        "case": case,
        "way": way,
        "runs_done": outcome.done,
        "missing_without_a_person": outcome.missing_at_first,
        "attempts": outcome.attempts,
        "sbatch_calls": calls.get("sbatch", 0),
        "slurm_calls": sum(calls.values()),
        "files": outcome.files,
        "lost_gpu_hours": round(outcome.used_gpu_h - useful_gpu_h),
        "lost_share": round(1 - useful_gpu_h / outcome.used_gpu_h, 4),
        "hours_to_table": round(outcome.hours, 1),
        "own_s": round(outcome.real_s, 1),
    }


def furnace(work: Work, num_nodes: int, rates: Rates, **profile: Any) -> Outcome:
    """Submit the grid once, and wait until the last follow-up job has made the table."""
    with tempfile.TemporaryDirectory(prefix="fb", dir=memory_folder()) as name:
        place, started_s = Path(name), time.perf_counter()
        environment = install(place / "slurm")
        write_study(place, len(work.train_s), PROFILE | profile, resources={"timeout_min": 1440})
        clock = Clock(time.time())
        begun_s = clock.now_s
        runs = FurnaceRuns(clock, work, continue_submission)
        slurm = Slurm(clock, runs, num_nodes, rates, seed=1, max_array_size=MAX_ARRAY_SIZE)
        with simulated(place, environment, clock, slurm):
            forget_configuration()
            submit.main(grid="big.yaml", cluster="dev", yes=True)
            clock.run_until(lambda: slurm.is_idle)
        table = place / "results" / "big" / "table.md"
        folder = GridFolder(place / "runs" / "big")
        done = len(list(folder.path.glob("*/result.json")))
        records = len(list(folder.path.glob("*/attempts/*.json")))
        assert records == runs.bill.attempts, "an attempt has no record, or two have one"
        files = sum(len(names) for _, _, names in os.walk(folder.path))
        return Outcome(
            done,
            runs.bill.attempts,
            dict(slurm.calls),
            files,
            runs.bill.used_s / 3600,
            (clock.now_s - begun_s) / 3600 if table.exists() else float("inf"),
            time.perf_counter() - started_s,
            len(work.train_s) - done,
        )


def in_arrays(work: Work, num_nodes: int, rates: Rates) -> Outcome:
    """Submit arrays of as many runs as MaxArraySize allows, as map_array does."""
    return plain(work, num_nodes, rates, at_once=MAX_ARRAY_SIZE - 1)


def in_loop(work: Work, num_nodes: int, rates: Rates) -> Outcome:
    """One sbatch per run."""
    return plain(work, num_nodes, rates, at_once=1)


def plain(work: Work, num_nodes: int, rates: Rates, at_once: int) -> Outcome:
    """Submit all runs, and those without result again, until none is left."""
    clock, rows = Clock(0), {}
    runs = PlainRuns(clock, work, lambda element: rows[element.job.job_id][element.index or 0])
    slurm = Slurm(clock, runs, num_nodes, rates, seed=1, max_array_size=MAX_ARRAY_SIZE)
    missing, at_first, started_s = list(range(len(work.train_s))), None, time.perf_counter()
    while missing:
        for at in range(0, len(missing), at_once):
            part = missing[at : at + at_once]
            array = f"#SBATCH --array=0-{len(part) - 1}\n" if at_once > 1 else ""
            said = slurm.submit(f"#!/bin/bash\n{array}#SBATCH --job-name=plain\n")
            rows[said.split()[-1]] = part
        clock.run_until(lambda: slurm.is_idle)
        missing = sorted(set(missing) - runs.done)
        at_first = len(missing) if at_first is None else at_first
        clock.sleep(PERSON_S if missing else 0)
    return Outcome(
        len(runs.done),
        runs.bill.attempts,
        dict(slurm.calls),
        SUBMITIT_FILES * runs.bill.attempts if at_once > 1 else 2 * runs.bill.attempts,
        runs.bill.used_s / 3600,
        clock.now_s / 3600,
        time.perf_counter() - started_s,
        at_first or 0,
    )


def continue_submission(submission: Path) -> None:
    """What a follow-up job runs. Its tables get no figures, which take longer than all else."""
    forget_configuration()
    follow_up.main(submission)


def forget_configuration() -> None:
    """Each command is a process of its own, which asks Slurm again."""
    for cached in (client.configuration, client.submit_limit, client.longest_min):
        cached.cache_clear()


@contextmanager
def simulated(
    place: Path, environment: dict[str, str], clock: Clock, slurm: Slurm
) -> Iterator[None]:
    """Replace the clock, the hosts and Slurm's commands for this process."""
    kept = [(time, "time", time.time), (time, "sleep", time.sleep)]
    kept += [(time, "monotonic", time.monotonic), (client, "_run", client._run)]
    kept += [(lease, "_boot_id", lease._boot_id), (aggregate, "_can_draw", aggregate._can_draw)]
    kept += [(lease.socket, "gethostname", lease.socket.gethostname)]
    kept += [(die_with_parent, "run", die_with_parent.run)]
    before, cwd, umask = dict(os.environ), Path.cwd(), os.umask(0o077)
    try:
        time.time = time.monotonic = lambda: clock.now_s
        time.sleep = clock.sleep
        client._run = lambda *command, stdin="": answer(slurm, command)
        aggregate._can_draw = lambda: False
        lease._boot_id = lambda: os.environ.get("SIMULATED_BOOT", "login")
        lease.socket.gethostname = lambda: os.environ.get("SLURMD_NODENAME", "login")
        die_with_parent.run = lambda command, seconds: Ended(
            0, slurm.submit(Path(command[-1]).read_text()), ""
        )
        os.environ.clear()  # each report of a rank searches it for secrets
        os.environ.update({name: environment[name] for name in KEPT if name in environment})
        os.chdir(place)
        with (place / "said").open("w") as said, redirect_stdout(said):
            yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)
        os.environ.clear()
        os.environ.update(before)
        os.chdir(cwd)
        os.umask(umask)


def answer(slurm: Slurm, command: tuple[str, ...]) -> client.CommandResult:
    """What Slurm's commands on the login node print."""
    program = command[0]
    slurm.calls["sbatch --test-only" if program == "sbatch" else program] += 1
    text = ""
    if program == "squeue":
        layout = next(word for word in command if word.startswith("--format="))
        text = slurm.queue(layout.removeprefix("--format=%F").partition("%K")[0])
    elif program == "sacct":
        words = dict(word.split("=", 1) for word in command if "=" in word)
        ids = set(words["--jobs"].split(","))
        if "AllocTRES" in words["--format"]:
            text = slurm.allocated(ids)
        else:
            text = slurm.accounting(ids, words["--delimiter"])
    elif program == "scontrol":
        text = f"ClusterName = simulated\nMaxArraySize = {slurm.max_array_size}\n"
    return client.CommandResult(True, text, "")


def memory_folder() -> str | None:
    """A file system in memory: a hundred thousand files are synced one by one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    main()
