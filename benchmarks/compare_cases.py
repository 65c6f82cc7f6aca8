"""The short benchmarks of compare.py. Each is a whole process that runs in both trees.

They use what trees of many versions have: commands, and the files of packs, grids and runs. Only
`compare_work.py` imports modules of Furnace.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import yaml
from pretend_slurm import QueuedJob, install, write_queue

WORK = Path(__file__).parent / "compare_work.py"
RUNS, SEEDS, LINES, CHANGED = 1000, 5, 50, 10
STEPS = 40
LIMIT_S = 300.0
PROFILE = {"name": "dev", "executor": "slurm", "gpu_flag": None, "max_array_size": 1_000_001}
BASE = {"deepspeed": "zero1", "global_batch_size": 8}
NETWORK = {"width": 32, "num_heads": 2, "feedforward": 64, "text_layers": 1}


class CaseFailed(Exception):
    """A case cannot run in a tree. The text is the last line that its process has printed."""


class Measured(NamedTuple):
    """Seconds of the clock, and of the CPU. None if only the clock was read."""

    wall_s: float
    cpu_s: float | None


@dataclass(frozen=True)
class Side:
    """One of the two trees, and a folder in which its commands run."""

    name: str
    tree: Path
    place: Path
    prepared: set[str] = field(default_factory=set)

    @property
    def environment(self) -> dict[str, str]:
        """Processes import the tree before the installed package, and find scripts for Slurm."""
        left_out = ("FURNACE_", "SLURM_", "SBATCH_", "PYTHONDONTWRITEBYTECODE")
        kept = {name: text for name, text in os.environ.items() if not name.startswith(left_out)}
        path = f"{self.place / 'slurm'}:{kept.get('PATH', os.defpath)}"
        return kept | {"PYTHONPATH": str(self.tree), "PATH": path, "OMP_NUM_THREADS": "1"}

    def command(self, name: str, *words: str) -> None:
        """Run a command of Furnace that is not measured."""
        self.measure(["-m", f"furnace_hpc.{name}", *words])

    def measure(self, words: list[str]) -> Measured:
        """Run Python with these words as a process. It is killed with an interrupt.

        Raises:
            CaseFailed: it did not exit with 0, or took longer than LIMIT_S.
        """
        output = self.place / "output"
        started_s = time.perf_counter()
        with output.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-P", *words],
                cwd=self.place,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
            try:
                code, cpu_s = _wait(process, started_s + LIMIT_S)
            except BaseException:
                process.kill()
                process.wait()
                raise
        wall_s = time.perf_counter() - started_s
        if code:
            lines = output.read_text(errors="replace").strip().splitlines()
            raise CaseFailed(lines[-1] if lines else f"exit code {code}")
        return Measured(wall_s, cpu_s)


def _wait(process: "subprocess.Popen[bytes]", deadline_s: float) -> tuple[int, float]:
    """The exit code of a process, and the CPU seconds of it and its children."""
    pause_s = 0.001
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage.ru_utime + usage.ru_stime
        if time.perf_counter() > deadline_s:
            raise CaseFailed(f"it took longer than {LIMIT_S:.0f} s")
        time.sleep(pause_s)
        pause_s = min(0.01, 1.1 * pause_s)


def _nothing(side: Side) -> None:
    """Need no preparation."""


def _whole(name: str) -> Callable[[Side, Measured], Mapping[str, Measured]]:
    """A reader whose only measure is the whole process."""
    return lambda side, whole: {name: whole}


class Case:
    """A short benchmark.

    Args:
        name: as `--cases` has it.
        words: words after `python -P`.
        prepare: called once for each side. It writes what the process reads.
        reset: called before each process.
        read: the measures of one process, by their names.
    """

    def __init__(
        self,
        name: str,
        words: Callable[[Side], list[str]],
        prepare: Callable[[Side], None] = _nothing,
        reset: Callable[[Side], None] = _nothing,
        read: Callable[[Side, Measured], Mapping[str, Measured]] | None = None,
    ) -> None:
        self.name, self._words, self._prepare, self._reset = name, words, prepare, reset
        self._read = read or _whole(name)

    def measure(self, side: Side) -> Mapping[str, Measured]:
        """Run the process once, and return its measures.

        Raises:
            CaseFailed: the tree cannot run it.
        """
        try:
            if self.name not in side.prepared:
                self._prepare(side)
                side.prepared.add(self.name)
            self._reset(side)
            whole = side.measure(self._words(side))
            return self._read(side, whole)
        except (OSError, ValueError, LookupError) as error:  # files of another version
            raise CaseFailed(f"{type(error).__name__}: {error}") from None


def pack(side: Side) -> None:
    """Pack a small TriDigits, once."""
    out = side.place / "data" / "tridigits"
    if not (out / "manifest.json").exists():
        sizes = ("--train", "256", "--val", "64", "--test", "64")
        side.command("pack", "tridigits", "--out", str(out), *sizes, "--workers", "1")


def write_grid(side: Side) -> None:
    """A grid of RUNS runs, and a cluster whose commands of Slurm are scripts."""
    pack(side)
    install(side.place / "slurm")
    (side.place / "slurm" / "clusters").mkdir(exist_ok=True)
    (side.place / "slurm" / "clusters" / "dev.yaml").write_text(yaml.safe_dump(PROFILE))
    rows = {f"row{n}": {"loss.alpha": n / 10_000} for n in range(1, RUNS // SEEDS)}
    grid = {
        "name": "big",
        "base": BASE | {"steps": 500},
        "seeds": list(range(SEEDS)),
        "reference": "base",
        "metric": "test/digit/accuracy",
        "variants": {"base": {}} | rows,
    }
    (side.place / "big.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))


def submitted(side: Side, root: str) -> tuple[Path, list[dict[str, Any]]]:
    """Submit the grid. Return the submission and the lines of its rows.jsonl."""
    write_grid(side)
    (side.place / "slurm" / "queue").write_text("")
    words = ("--grid", "big.yaml", "--cluster", "dev", "--yes", "--runs-root", root)
    side.command("submit", *words)
    submission = side.place / root / "big" / "submissions" / "1"
    return submission, _json_lines(submission / "rows.jsonl")


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_states(side: Side) -> None:
    """Submit the grid. A fifth waits, a fifth trains, a fifth was preempted, the rest is done."""
    submission, rows = submitted(side, "runs")
    events = _json_lines(submission / "journal.jsonl")
    names = {event["kind"]: event["name"] for event in events if event["event"] == "intent"}
    ids = {event["name"]: event["job_id"] for event in events if event["event"] == "submitted"}
    array, follow_up = names["array"], names["follow-up"]
    jobs = [QueuedJob(ids[follow_up], "N/A", "PENDING", "Dependency", follow_up)]
    for row in rows:
        number, kind = row["row"], row["row"] % 5
        if kind:
            write_run(Path(row["run_dir"]), f"{ids[array]}_{number}", kind)
        if kind < 3:
            state = ("PENDING", "RUNNING", "PENDING")[kind]
            jobs.append(QueuedJob(ids[array], str(number), state, "None", array))
    write_queue(side.place / "slurm", jobs)


def write_results(side: Side) -> None:
    """Submit the grid, and finish all runs."""
    submission, rows = submitted(side, "finished")
    specs = (submission / "specs.jsonl").read_text().splitlines()
    for number, (row, spec) in enumerate(zip(rows, specs, strict=True)):
        run = Path(row["run_dir"])
        write_run(run, "7", kind=3)
        (run / "spec.json").write_text(spec)
        result = result_of(json.loads(spec), row["run_id"], 0.8 + (number * 7919 % 1000) / 10_000)
        (run / "result.json").write_text(json.dumps(result))


def write_run(run: Path, job_id: str, kind: int) -> None:
    """Write the files of a run that trains (1), was preempted (2), or is done."""
    for part in ("attempts", "metrics", "logs", "verdicts"):
        (run / part).mkdir(parents=True)
    attempt = {"attempt": 1, "start_unix_s": time.time() - 900, "job_id": job_id, "gpus": 1}
    attempt |= {"holder": {"host": "node17", "pid": 1}, "end_unix_s": None, "world_size": 1}
    if kind != 1:
        reason = "preempted" if kind == 2 else "done"
        attempt |= {"end_unix_s": time.time() - 300, "reason": reason, "step": 500}
    (run / "attempts" / "1.json").write_text(json.dumps(attempt))
    rest = dict.fromkeys(("lr", "grad_norm", "step_time_s", "samples_per_s"), 0.123456789012)
    lines = [
        {"step": 10 * n, "kind": "train", "train/loss": 2.3 / n, "time_unix_s": 1.0, **rest}
        for n in range(1, LINES + 1)
    ]
    (run / "metrics" / "1.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (run / "verdicts" / "1-0.jsonl").write_text('{"rank": 0, "verdict": "entered", "step": 0}\n')
    if kind > 2:
        (run / "result.json").write_text(json.dumps({"run_id": run.name}))


def result_of(spec: dict[str, Any], run_id: str, accuracy: float) -> dict[str, Any]:
    """The result of a finished run."""
    result = {"run_id": run_id, "variant": spec["variant"], "seed": spec["config"]["seed"]}
    result |= {"steps": 500, "selected_step": 400, "attempts": 1, "world_size": 1}
    result |= {"metrics": {"test/digit/accuracy": accuracy, "test/digit/loss": 0.5}}
    result |= {"parameters_sha256": "0" * 64, "num_parameters": 187_402, "num_threads": 1}
    result |= {"train_s": 60.0, "wall_s": 80.0, "samples_per_s": 250.0, "peak_memory_gib": 0.5}
    result |= {"device": "a CPU", "precision": "bf16", "zero_stage": 1, "code_hash": "c0dec0de"}
    result |= {"data_fingerprint": spec["data_fingerprint"], "commit": "1234567"}
    return result | {"versions": {"torch": "2.13.0"}}


def forget_tables(side: Side) -> None:
    """Remove the cache of aggregate."""
    shutil.rmtree(side.place / "finished" / "big" / "cache", ignore_errors=True)


def touch_results(side: Side) -> None:
    """Let some results look new to the cache of aggregate."""
    results = sorted((side.place / "finished" / "big").glob("*/result.json"))[:CHANGED]
    for path in results:
        os.utime(path)


def forget_jobs(side: Side) -> None:
    """Let status ask Slurm."""
    (side.place / "runs" / "big" / "slurm.json").unlink(missing_ok=True)


def prepare_training(side: Side) -> None:
    """Write the folder of one run of STEPS steps."""
    pack(side)
    base = BASE | {"steps": STEPS, "log_every": 10, "model": NETWORK}
    grid = {"name": "short", "base": base, "seeds": [0], "reference": "base"}
    grid |= {"metric": "test/digit/accuracy", "variants": {"base": {}}}
    (side.place / "short.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    side.command("submit", "--grid", "short.yaml", "--cluster", "local", "--prepare")


def run_folder(side: Side) -> Path:
    """The folder of the run that trains."""
    [row] = _json_lines(side.place / "runs" / "short" / "submissions" / "1" / "rows.jsonl")
    return Path(row["run_dir"])


def forget_training(side: Side) -> None:
    """Remove all files of the run except its spec."""
    run = run_folder(side)
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "spec.json":
            path.unlink()


def train(side: Side) -> list[str]:
    """The words that train the run."""
    return ["-m", "furnace_hpc.train", str(run_folder(side)), "--data-root", "data"]


def read_training(side: Side, whole: Measured) -> dict[str, Measured]:
    """The time of a step, from the run's metrics, and of the rest: start, evaluations and end."""
    records = _json_lines(run_folder(side) / "metrics" / "1.jsonl")
    steps = [record["step_time_s"] for record in records if "step_time_s" in record]
    step_s = median(steps[1:])  # the first record has the warm-up
    rest = Measured(whole.wall_s - STEPS * step_s, None)
    return {
        f"run of {STEPS} steps, whole process": whole,
        "the same: start, evaluations and end": rest,
        "the same: a step": Measured(step_s, None),
    }


def work(name: str) -> Case:
    """A case of compare_work.py. It writes its times into `times.json`."""

    def words(side: Side) -> list[str]:
        return [str(WORK), name, str(side.place)]

    def read(side: Side, whole: Measured) -> dict[str, Measured]:
        times = json.loads((side.place / "times.json").read_text())
        return {name: Measured(times["wall_s"], times["cpu_s"])}

    return Case(name, words, read=read)


def _words(*words: str) -> Callable[[Side], list[str]]:
    return lambda side: list(words)


_SUBMIT = ("-m", "furnace_hpc.submit", "--grid", "big.yaml", "--cluster", "dev")
_AGGREGATE = ("-m", "furnace_hpc.aggregate", "--grid", "big", "--runs-root", "finished")
_TABLES = _words(*_AGGREGATE, "--out", "tables", "--no-figures")


def write_results_once(side: Side) -> None:
    """Finish all runs, for two cases."""
    if not (side.place / "finished").exists():
        write_results(side)


CASES = [
    Case("import of furnace_hpc", _words("-c", "import furnace_hpc")),
    Case("import of submit", _words("-c", "import furnace_hpc.submit")),
    Case("submit --dry-run of 1,000 runs", _words(*_SUBMIT, "--dry-run"), write_grid),
    Case(
        "status of 1,000 runs",
        _words("-m", "furnace_hpc.status", "--grid", "big"),
        write_states,
        forget_jobs,
    ),
    Case("tables of 1,000 runs", _TABLES, write_results_once, forget_tables),
    Case("tables again", _TABLES, write_results_once, touch_results),
    work("loader pass"),
    work("save of 100 MB"),
    Case("training", train, prepare_training, forget_training, read_training),
]
