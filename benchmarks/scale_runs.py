"""What jobs do in the simulation: a run of Furnace without its training, and a plain script.

A run of Furnace makes the files that real attempts make, with the same code: `batch.begin_row`
before the ranks, checkpoints, metrics, verdicts of ranks and the result, and `lifecycle.decide`
after the ranks. Only the training itself is replaced by a number of seconds.
"""

import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from scale_slurm import Clock, Element

from furnace_hpc.host import batch, lifecycle
from furnace_hpc.host.json_lines import read_json
from furnace_hpc.launch.batch_script import FOLLOW_UP_MIN
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records import checkpoint_files
from furnace_hpc.runs.records.metrics import MetricsFile
from furnace_hpc.runs.records.result import RunResult, write_result
from furnace_hpc.runs.records.verdict import RankVerdict

GPUS = 8  # of a node, and of a run
FOLLOW_UP_S = 60.0
SHARD = b"parameters"
STOPPED = {"preempted": "SIGTERM", "time_limit": "SIGUSR2"}


@dataclass(frozen=True)
class Work:
    """How long runs take, in seconds."""

    train_s: tuple[float, ...]  # of each row; a step takes a second
    startup_s: float = 300.0
    checkpoint_every_s: float = 1800.0


@dataclass
class Bill:
    """GPU-seconds of all attempts, and how many attempts there were."""

    used_s: float = 0.0
    attempts: int = 0

    def add(self, seconds: float) -> None:
        """Count one attempt on all GPUs of its node."""
        self.used_s += GPUS * seconds
        self.attempts += 1


@dataclass
class PlainRuns:
    """Scripts that start at zero and save nothing. A job that is killed leaves no result."""

    clock: Clock
    work: Work
    row_of: Callable[[Element], int]
    bill: Bill = field(default_factory=Bill)
    done: set[int] = field(default_factory=set)

    def begin(self, element: Element) -> float | None:
        """Train from step 0."""
        return self.work.startup_s + self.work.train_s[self.row_of(element)]

    def end(self, element: Element, cause: str) -> str:
        """Only a script that reaches its end leaves a result."""
        self.bill.add(self.clock.now_s - element.started_s)
        if cause != "done":
            return "fail" if cause == "gpu" else "restart"
        self.done.add(self.row_of(element))
        return "done"


@dataclass
class Training:
    """An attempt that runs."""

    folder: RunFolder
    number: int
    total: int  # steps
    resumed: int


@dataclass
class FurnaceRuns:
    """Batch scripts of Furnace: arrays train, and follow-up jobs continue the submission."""

    clock: Clock
    work: Work
    follow_up: Callable[[Path], None]
    bill: Bill = field(default_factory=Bill)
    training: dict[Element, Training] = field(default_factory=dict)
    follow_ups: int = 0

    def begin(self, element: Element) -> float | None:
        """Run the batch script up to its ranks."""
        if element.index is None:
            return FOLLOW_UP_S
        submission, base = submission_of(element.job.script)
        with on_node(element):
            self._copy_payload(submission, element)
            values = begin_row(submission, base + element.index, element.job_id)
        if not values:
            return None
        run = RunFolder(Path(values["FURNACE_RUN_DIR"]))
        total = int(self.work.train_s[base + element.index])
        resumed = checkpoint_files.newest_step(run) or 0
        number = int(values["FURNACE_ATTEMPT"])
        self.training[element] = Training(run, number, total, resumed)
        return self.work.startup_s + total - resumed

    def end(self, element: Element, cause: str) -> str:
        """Leave the files of the attempt, and run the rest of the batch script."""
        if element.index is None:
            return self._end_follow_up(element, cause)
        attempt = self.training.pop(element)
        took_s = self.clock.now_s - element.started_s
        self.bill.add(took_s)
        trained = max(0, round(took_s - self.work.startup_s))
        step = min(attempt.total, attempt.resumed + trained)
        with on_node(element):
            self._write(attempt, element, step, cause)
            if cause == "node":
                return "restart"
            exit_code = 0 if cause == "done" else 1
            return lifecycle.decide(str(attempt.folder.path), attempt.number, exit_code)

    def _end_follow_up(self, element: Element, cause: str) -> str:
        if cause != "done":
            return "restart"
        self.follow_ups += 1
        submission, _ = submission_of(element.job.script)
        with on_node(element):
            self.follow_up(submission)
        return "done"

    def _copy_payload(self, submission: Path, element: Element) -> None:
        """What the batch script leaves in the submission's folder: the payload, and its output."""
        copy = submission / f"{element.job_id}_submitted.pkl"
        copy.write_bytes((submission / "payload.pkl").read_bytes())
        with (submission / f"{element.job_id}_0_log.out").open("a") as log:
            log.write(f"begun on {os.environ['SLURMD_NODENAME']}\n")

    def _write(self, attempt: Training, element: Element, step: int, cause: str) -> None:
        """The metrics, checkpoints and verdicts of an attempt that ends at this step."""
        run, number = attempt.folder, attempt.number
        verdicts = [RankVerdict(run, number, rank) for rank in range(GPUS)]
        for verdict in verdicts:
            verdict.__enter__()
            verdict.at(step)
        (run.path / "logs").mkdir(exist_ok=True)
        run.log(number, 0).write_text(f"run {run.run_id}, attempt {number}\n")
        if step > attempt.resumed:
            metrics = MetricsFile(run.metrics(number))
            metrics.write({"step": step, "kind": "train", "train/loss": 1.0, "step_time_s": 1.0})
            metrics.close()
            os.utime(run.metrics(number), (self.clock.now_s, self.clock.now_s))
        saves_at_end = cause in STOPPED or cause == "done"
        self._save(attempt, step, saves_at_end)
        if cause == "done":
            write_result(run, result_of(attempt, self.work))
        for verdict in verdicts:
            report(verdict, cause)

    def _save(self, attempt: Training, step: int, saves_at_end: bool) -> None:
        """Save at each interval since the start of the attempt, and keep the newest checkpoint."""
        every, run = int(self.work.checkpoint_every_s), attempt.folder
        saved = list(range(attempt.resumed + every, step + 1, every))
        if saves_at_end and step > attempt.resumed and (not saved or saved[-1] != step):
            saved.append(step)
        for one in saved:
            checkpoint_files.note_saved(run, one, attempt.number, 1.0)
        if saved:
            temporary = run.checkpoints / f"step-{saved[-1]}.tmp-{attempt.number}"
            temporary.mkdir(parents=True)
            (temporary / "shard").write_bytes(SHARD)
            files = {"shard": checkpoint_files.describe(temporary / "shard")}
            facts = {"step": saved[-1], "world_size": GPUS, "state": {}}
            checkpoint_files.complete(temporary, run.checkpoint(saved[-1]), facts, files)
            checkpoint_files.prune(run, saved[-1], keep=1, also=())


def report(verdict: RankVerdict, cause: str) -> None:
    """How a rank reports its end. Ranks of a node that is lost report nothing."""
    if cause == "done":
        verdict.done()
    elif cause in STOPPED:
        verdict.stopped(STOPPED[cause])
    elif cause == "gpu":
        message = "CUDA error: uncorrectable ECC error encountered"
        if verdict.rank:
            message = "[Rank 1] NCCL communicator was aborted: remote process exited"
        error = RuntimeError(message)
        verdict.__exit__(RuntimeError, error, None)


def result_of(attempt: Training, work: Work) -> RunResult:
    """A result whose score depends on the row and the seed alone."""
    spec = read_json(attempt.folder.spec)
    seed = spec["config"]["seed"]
    score = 0.8 + zlib.crc32(f"{spec['variant']}-{seed}".encode()) % 1000 / 10_000
    facts = {
        "metrics": {"test/digit/accuracy": score},
        "parameters_sha256": "0" * 64,
        "num_parameters": 1,
        "train_s": float(attempt.total),
        "wall_s": attempt.total + work.startup_s,
        "samples_per_s": 1.0,
        "peak_memory_gib": 1.0,
        "device": "simulated",
        "precision": "bf16",
        "zero_stage": 1,
        "data_fingerprint": spec["data_fingerprint"],
        "code_hash": lifecycle.read_attempt(str(attempt.folder.path), 1).get("code_hash", ""),
        "commit": None,
        "versions": {},
    }
    return RunResult(
        run_id=attempt.folder.run_id,
        variant=spec["variant"],
        seed=seed,
        steps=spec["config"]["steps"],
        selected_step=spec["config"]["steps"],
        world_size=GPUS,
        num_threads=1,
        attempts=attempt.number,
        **facts,
    )


def submission_of(script: str) -> tuple[Path, int]:
    """The submission's folder and the array's base, from the text of a batch script."""
    for line in script.splitlines():
        if " begin-row " in line:
            words = line.split(" begin-row ")[1].split()
            return Path(words[0]), int(words[1].removeprefix('"$((').rstrip())
        if " -m furnace_hpc.follow_up " in line:
            return Path(line.split()[-1]), 0
    raise ValueError("neither an array nor a follow-up job")


def begin_row(submission: Path, row: int, job: str) -> dict[str, str]:
    """Run `batch.py begin-row`, and return the values that it prints. Empty if it refuses."""
    said = SimpleNamespace(buffer=io.BytesIO(), write=lambda text: None, flush=lambda: None)
    before, sys.stdout = sys.stdout, said  # type: ignore[assignment]
    try:
        batch.begin_row(str(submission), row, job, os.getpid())
    except SystemExit:
        return {}
    finally:
        sys.stdout = before
    lines = said.buffer.getvalue().decode().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("export"))


@contextmanager
def on_node(element: Element) -> Iterator[None]:
    """What programs of a job see: the host's name and boot, and Slurm's variables."""
    assert element.node is not None
    before = dict(os.environ)
    os.environ["SLURMD_NODENAME"] = os.environ["SLURM_JOB_NODELIST"] = element.node.name
    os.environ["SIMULATED_BOOT"] = json.dumps([element.node.name, element.node.boot])
    os.environ["SLURM_JOB_ID"] = element.job.job_id
    if element.index is not None:
        os.environ["SLURM_ARRAY_JOB_ID"] = element.job.job_id
        os.environ["SLURM_ARRAY_TASK_ID"] = str(element.index)
    else:
        end_s = element.started_s + 60 * FOLLOW_UP_MIN
        os.environ["SLURM_JOB_END_TIME"] = str(int(end_s))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
