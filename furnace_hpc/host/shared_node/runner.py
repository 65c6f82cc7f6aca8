"""Run the rows of an array element side by side on one node.

    runner.py SUBMISSION CALL PLACES PYTHON --srun OPTION ... --ranks COMMAND ...

CALL names the sbatch call, whose rows are in the journal, or lists rows: 0-3,7. PYTHON, of the
ranks, first checks the GPUs. Each run is a job step with its own lease, attempt and end. A run that
ends leaves its place to the next row. If a run wants a requeue, no row starts any more, and Slurm
requeues the job when all its runs have ended.
Exit codes: 0 if no run failed, else 1. Standard library only, syntax of Python 3.6.
"""

import os
import signal
import sys
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

if __name__ == "__main__":
    # Python puts this script's folder on the path. Its modules could hide the standard library's.
    sys.path[0] = os.path.dirname(
        os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    )

from furnace_hpc.host import access, batch, gpu_check, lease, lifecycle
from furnace_hpc.host.container import start
from furnace_hpc.host.end_reasons import EARLY_S
from furnace_hpc.host.shared_node.rows import Pool, rows_of_call
from furnace_hpc.host.shared_node.sharing import Division, divide
from furnace_hpc.host.shared_node.steps import (
    Share,
    Step,
    environment_of,
    srun_command,
    start_step,
)

POLL_S = 0.5
REQUEUED_S = 60.0  # until Slurm ends this process
AGAIN_S = 10.0  # between two stop signals to a run
# After these reasons a run is started again in its place. The node is not to blame for them, or may
# not be.
RETRIED_HERE = ("oom_halved", "peer_lost", "hang", "infrastructure")
MAX_RETRIES_HERE = 2  # of a run, per start of the job
STOPPED = ("time_limit", "preempted")  # Slurm has sent all runs a stop signal

Record = Dict[str, Any]


class Job(NamedTuple):
    """The array element, and what every run of it is started with."""

    submission: str
    job: str  # such as 12_3
    python: str
    share: Share
    options: List[str]  # of srun
    ranks: List[str]  # command of a rank
    started_unix_s: float
    end_unix_s: Optional[float]  # end of its time, if Slurm has named it
    facts: Record = {}  # of each attempt, besides those of its row


class Runner:
    """Start rows in free places, watch their runs, and decide about a requeue at the end."""

    def __init__(self, job: Job, pool: Pool) -> None:
        self._job, self._pool = job, pool
        self._steps: List[Step] = []
        self._waiting: List[Record] = []
        self._retries: Dict[int, int] = {}
        self._is_closed = False  # no row starts any more
        self._is_stopping = False  # one of the runs has received a stop signal
        self._stop_from_unix_s = 0.0  # runs that began later get the stop signal from here
        self._has_checked_gpus = False
        self._has_filled = False
        self._has_failures = False
        self._is_refused = False

    def work(self) -> bool:
        """Run everything. Return whether no run failed. The job may be requeued at the end."""
        self._fill()
        self._has_filled = True
        while self._steps:
            time.sleep(POLL_S)
            self._watch_clock()
            for step in list(self._steps):
                self._watch(step)
            self._fill()
        waiting = [row for row in self._waiting if not self._pool.is_cancelled(row)]
        if not self._is_refused:
            waiting += self._pool.left()
        if waiting:
            names = ", ".join(row["run_id"] for row in waiting)
            _say(f"job {self._job.job} is requeued for {names}")
            batch.requeue(self._job.job)
            time.sleep(REQUEUED_S)
        return not self._has_failures and not waiting

    def request_stop(self, *_: Any) -> None:
        """Ask all runs to save and stop. It is also a signal handler."""
        self._is_closed = self._is_stopping = True
        self._stop_from_unix_s = 0.0

    def _fill(self) -> None:
        while len(self._steps) < self._job.share.places and not self._is_closed:
            try:
                row = self._pool.next_row()
            except OSError as error:  # a shared disk may fail for a while. The next look retries
                _say(f"the runs cannot be read now: {error}")
                return
            if row is None:
                return
            if self._is_late(row):
                self._pool.put_back(row)
                self._is_closed = True
                return
            try:
                self._start(row)
            except lifecycle.Busy as busy:
                _say(f"run {row['run_id']} is not started: {busy}")
            except (Exception, SystemExit) as error:
                # Such as a full disk, or a container without image. The neighbours continue.
                self._has_failures = True
                _say(f"run {row['run_id']} is not started: {type(error).__name__}: {error}")

    def _start(self, row: Record) -> None:
        job = self._job
        self._check(row)
        refusal = self._find_refusal(row)
        if refusal:
            self._is_closed = self._has_failures = self._is_refused = True
            _say(f"run {row['run_id']} is {refusal}")
            return
        facts = dict(row["facts"], time_limit_s=self._left_s(row), **job.facts)
        given = dict(row, facts=facts)
        begun = batch.begin_attempt(job.submission, given, job.job, os.getpid())
        try:
            self._steps.append(self._started(row, begun))
        except BaseException as error:
            lifecycle.close(row["run_dir"], begun.number, f"srun was not started: {error}")
            raise

    def _started(self, row: Record, begun: batch.Begun) -> Step:
        """Start the srun of an attempt in a free place."""
        job = self._job
        place = job.share.free_place([step.place for step in self._steps])
        own = job.share.variables(place)
        environment = dict(environment_of(row, begun.number, begun.variables), **own)
        ranks = job.ranks
        if begun.container:
            inside = ranks[ranks.index("-u") :]  # the arguments of the container's Python
            ranks = begun.container.rank_words(begun.number, dict(begun.variables, **own)) + inside
        name = f"{job.job}-{row['row']}_%n_log.out"
        output = os.path.join(job.submission, name)
        command = srun_command(job.share, row, output, job.options, ranks)
        _say(f"run {row['run_id']}: attempt {begun.number} starts")
        return start_step(command, environment, row, begun.number, place)

    def _check(self, row: Record) -> None:
        """Raise if other users could change the code that a start executes. Hours have passed."""
        root = _folder(self._job.submission, 3)
        own = _folder(os.path.abspath(batch.__file__), 3)
        for code in {row["code"], own}:
            # A submission by hand runs the installed package.
            if code == row["code"] or code.startswith(os.path.join(root, "")):
                fault = next(access.find_faults(code, root), None)
                if fault:
                    raise PermissionError(f"{fault.problem}. Nothing of it is run. {fault.fix}")

    def _find_refusal(self, row: Record) -> str:
        """Check the GPUs of the job once. Later runs read the result of all jobs."""
        job = self._job
        if self._has_checked_gpus:
            return gpu_check.stop_reason(job.submission)
        self._has_checked_gpus = True
        command = start.python_of_check(job.submission, row, job.python)
        return gpu_check.find_refusal(job.submission, row["run_id"], job.job, command)

    def _is_late(self, row: Record) -> bool:
        """Whether too little of the job's time is left to begin a run.

        A job always fills its places once. So every start of a job makes progress. A row of another
        job needs half of its time limit: that job has the whole time for it.
        """
        if not self._has_filled:
            return False
        left_s, delay_s = self._left_s(row), row["facts"].get("signal_delay_s") or 0.0
        needed_s = 2 * delay_s + EARLY_S
        if not self._pool.is_own(row):
            needed_s = max(needed_s, float(row["facts"].get("time_limit_s") or 0) / 2)
        return left_s is not None and left_s < needed_s

    def _left_s(self, row: Record) -> Optional[float]:
        """Seconds of the job's time that are left. None if its time has no limit."""
        end, limit_s = self._job.end_unix_s, row["facts"].get("time_limit_s")
        if end is None and limit_s:
            end = self._job.started_unix_s + float(limit_s)
        if end is None:
            return None
        return max(0.0, end - time.time())

    def _watch_clock(self) -> None:
        """Stop all runs before the time limit. Slurm does not signal a step that has just begun."""
        if self._is_stopping or not self._steps:
            return
        row = self._steps[0].row
        left_s, delay_s = self._left_s(row), row["facts"].get("signal_delay_s") or 0.0
        if left_s is not None and left_s < delay_s:
            self.request_stop()

    def _watch(self, step: Step) -> None:
        """Reap a run that has ended. Stop one that was cancelled, or that missed a stop signal."""
        code = step.exit_code()
        if code is not None:
            self._steps.remove(step)
            self._end(step, code)
            return
        step.end_if_outlived()
        now = time.time()
        if self._pool.is_cancelled(step.row):
            self._cancel(step, now)
        elif self._is_stopping and step.started_unix_s > self._stop_from_unix_s:
            step.ask_to_stop(AGAIN_S)

    def _cancel(self, step: Step, now: float) -> None:
        """Ask the run to save and stop. Kill it after the time that it has before a time limit."""
        if not step.cancelled_unix_s:
            step.cancelled_unix_s = now
            _say(f"run {step.row['run_id']} is cancelled: it saves and stops")
        patience_s = float(step.row["facts"].get("signal_delay_s") or 60)
        if now - step.cancelled_unix_s > patience_s:
            step.kill()
        else:
            step.ask_to_stop(AGAIN_S)

    def _end(self, step: Step, code: int) -> None:
        try:
            verdict = self._decide(step, code)
        except Exception as error:  # such as a full disk: it must not stop the neighbours
            verdict = f"fail ({type(error).__name__}: {error})"
        run_id = step.row["run_id"]
        _say(f"run {run_id}: attempt {step.attempt} ended: {verdict} (srun exit code {code})")
        if verdict == "requeue":
            self._start_again(step)
        elif verdict not in ("done", "cancelled"):
            self._has_failures = True

    def _decide(self, step: Step, code: int) -> str:
        run_dir = step.row["run_dir"]
        is_done = os.path.exists(os.path.join(run_dir, "result.json"))
        if step.cancelled_unix_s and not is_done:
            error = "cancelled by `furnace cancel`"
            lifecycle.close(run_dir, step.attempt, error, "cancelled")
            return "cancelled"
        return lifecycle.decide(run_dir, step.attempt, code)

    def _start_again(self, step: Step) -> None:
        """Start the run again here if its reason allows it. Else it waits for the requeue."""
        row = step.row
        reason = _reason_of_end(row["run_dir"], step.attempt)
        count = self._retries.get(row["row"], 0)
        if reason in RETRIED_HERE and count < MAX_RETRIES_HERE and not self._is_closed:
            self._retries[row["row"]] = count + 1
            self._pool.retry(row)
            return
        self._waiting.append(row)
        self._is_closed = True
        if reason in STOPPED and not self._is_stopping:
            self._is_stopping = True
            # Slurm has signalled all steps that it had started by then.
            self._stop_from_unix_s = time.time() - EARLY_S


def _reason_of_end(run_dir: str, attempt: int) -> str:
    """The recorded reason. Empty if it cannot be read: then the run waits for the requeue."""
    try:
        return str(lifecycle.read_attempt(run_dir, attempt).get("reason", ""))
    except OSError as error:
        _say(f"the end of attempt {attempt} of {run_dir} cannot be read: {error}")
        return ""


def _start_unix_s() -> float:
    """The start of the batch script: the lines of setup may have taken minutes."""
    try:
        with open("/proc/uptime") as file:
            uptime_s = float(file.read().split()[0])
        start_ticks = float(lease.holder(os.getppid())["pid_start"])
        return time.time() - uptime_s + start_ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, TypeError):
        return time.time()


def _folder(path: str, levels: int) -> str:
    for _ in range(levels):
        path = os.path.dirname(path)
    return path


def _say(line: str) -> None:
    print(line, flush=True)


def _job_of(
    arguments: List[str], environment: Mapping[str, str], share: Share, facts: Record
) -> Job:
    options = arguments[arguments.index("--srun") + 1 : arguments.index("--ranks")]
    ends = environment.get("SLURM_JOB_END_TIME", "")
    return Job(
        submission=os.path.abspath(arguments[0]),
        job=_name(environment),
        python=arguments[3],
        share=share,
        options=options,
        ranks=arguments[arguments.index("--ranks") + 1 :],
        facts=facts,
        started_unix_s=_start_unix_s(),
        end_unix_s=float(ends) if ends.isdigit() else None,
    )


def _name(environment: Mapping[str, str]) -> str:
    return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"


def main(arguments: List[str]) -> None:
    """Run the element of the environment."""
    submission, call, places = arguments[0], arguments[1], int(arguments[2])
    numbers = rows_of_call(submission, call)
    index = int(os.environ["SLURM_ARRAY_TASK_ID"])
    if not numbers[index * places :]:
        sys.exit(f"runner.py: {submission} has no rows for index {index} of {call}")
    pool = Pool(submission, numbers, index, places, _name(os.environ))
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        pool.take_over()
    requests: List[int] = []
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: requests.append(number))
    is_in_container = start.read_container(submission) is not None
    division = divide(places, pool.runs_per_gpu, os.environ, is_in_container)
    try:
        is_good = _run(arguments, division, pool, requests)
    finally:
        if division.mps:
            division.mps.close()
    sys.exit(0 if is_good else 1)


def _run(arguments: List[str], division: Division, pool: Pool, requests: List[int]) -> bool:
    if division.line:
        _say(division.line)
    os.environ.update(division.variables)
    runner = Runner(_job_of(arguments, os.environ, division.share, division.facts), pool)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, runner.request_stop)
    if requests:
        runner.request_stop()
    return runner.work()


if __name__ == "__main__":
    main(sys.argv[1:])
