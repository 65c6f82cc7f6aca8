"""The commands that a batch script runs with the node's own Python.

    begin-row SUBMISSION ROW JOB PID [PYTHON]   begin that row's run, print shell assignments;
                                                PYTHON, of the ranks, first checks the GPUs
    begin-run RUN_DIR JOB PID                   begin a run as its newest submission describes it
    decide RUN_DIR ATTEMPT RC                   print done, requeue or fail
    guard RUN_DIR ATTEMPT PID                   end srun if it outlives its ranks or its attempt;
                                                PID: of srun, or of the shell that runs it
    requeue JOB                                 ask Slurm to requeue the job, again and again
    launch COMMAND ...                          become COMMAND, with stop signals blocked

Exit codes: 0 done; 3 the run is done already; 1 any other problem, with one line that names it.
Standard library only, syntax of Python 3.6.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from typing import Any, Dict, List, NamedTuple, Optional

if __name__ == "__main__":
    # Python puts this script's folder on the path. Its modules could hide the standard library's.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from furnace_hpc.host import gpu_check, lifecycle, portable
from furnace_hpc.host.container import start
from furnace_hpc.host.json_lines import find_in_order, read_json_lines
from furnace_hpc.host.local_python.unpack import with_local_python
from furnace_hpc.host.regular_file import open_regular
from furnace_hpc.host.shared_node.part import keep_to_part
from furnace_hpc.host.steps import guard

EXIT_DONE_ALREADY = 3
# four minutes: enough for a controller to restart, or for its backup to take over
REQUEUE_PAUSES_S = (1, 2, 4, 8, 15, 30, 60, 60, 60)
SCONTROL_TIMEOUT_S = 60
# Messages of scontrol if the controller does not answer. A second request does no harm.
UNREACHABLE = re.compile(
    r"Unable to contact|timed out|Connection (refused|reset)|not connected|standby mode|Zero Bytes|"
    r"(receive|send) failure|Rate limit|temporarily unable",
    re.IGNORECASE,
)
RESUBMITTED = "The follow-up job or the next `furnace submit` submits its run again"


def begin_row(submission: str, index: int, job: str, pid: int, python: str = "") -> None:
    """Begin the run of one row, and print what the batch script needs."""
    row = _find_row(submission, "row", index)
    if not row:
        sys.exit(f"batch.py: {submission} has no row {index}")
    command = start.python_of_check(submission, row, python)
    refusal = gpu_check.find_refusal(submission, row["run_id"], job, command)
    if refusal:
        sys.exit(f"batch.py: run {row['run_id']} is {refusal}")
    _begin(submission, row, job, pid)


def begin_run(run_dir: str, job: str, pid: int) -> None:
    """Begin the run of a folder, as the newest submission with this run describes it."""
    run_dir = os.path.abspath(run_dir)
    submissions = os.path.join(os.path.dirname(run_dir), "submissions")
    try:
        names = os.listdir(submissions)
    except OSError:
        sys.exit(f"batch.py: {run_dir} is not the run folder of a submitted grid")
    run_id = os.path.basename(run_dir)
    for number in sorted((int(name) for name in names if name.isdigit()), reverse=True):
        submission = os.path.join(submissions, str(number))
        row = _find_row(submission, "run_id", run_id)
        if row:
            return _begin(submission, row, job, pid)
    sys.exit(f"batch.py: no submission in {submissions} has run {run_id}")


def requeue(job: str) -> None:
    """Ask Slurm to requeue this job. Retry while the controller does not answer."""
    for pause_s in REQUEUE_PAUSES_S + (0,):
        error = _scontrol_requeue(job)
        if not error:
            return
        if not UNREACHABLE.search(error):
            sys.exit(f"batch.py: job {job} was not requeued: {error}. {RESUBMITTED}")
        print(f"batch.py: job {job} is not requeued yet: {error}", file=sys.stderr, flush=True)
        time.sleep(pause_s)
    sys.exit(f"batch.py: Slurm did not answer, so job {job} was not requeued. {RESUBMITTED}")


def launch(command: List[str]) -> None:
    """Replace this process by `command`, with the stop signals blocked.

    A signal during start-up stays pending until the training's handlers unblock it. Else it would
    kill the rank. If the profile stages Python, it is started from this node's own disk. A rank of
    a run that shares its GPU keeps to its GPU and its cores.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, lifecycle.STOP_SIGNALS)
    keep_to_part(os.environ)
    command = with_local_python(command, os.environ)
    os.execvp(command[0], command)


def _scontrol_requeue(job: str) -> str:
    """Run `scontrol requeue`. Returns its error message, empty after success."""
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SCONTROL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "scontrol timed out"
    except OSError as error:
        return f"scontrol: {error.strerror}"
    if done.returncode == 0:
        return ""
    message = " ".join(done.stdout.decode("utf-8", "replace").split())
    return message or f"scontrol exits with {done.returncode}"


class Begun(NamedTuple):
    """An attempt that has begun, and what its ranks need."""

    number: int
    variables: Dict[str, str]  # of a portable run
    container: Optional[start.RunInContainer]  # None: the ranks start on the host


def begin_attempt(submission: str, row: Dict[str, Any], job: str, pid: int) -> Begun:
    """Begin an attempt of a row's run.

    Raises:
        Done, Busy: as `lifecycle.begin`.
    """
    with open_regular(os.path.join(submission, "specs.jsonl")) as file:
        file.seek(row["spec_at"][0])
        spec = file.read(row["spec_at"][1]).decode("utf-8")
    container = start.find_container(submission, row, json.loads(spec))
    lifecycle.write_spec(row["run_dir"], spec)
    facts = dict(row["facts"], job_id=job)
    if container:
        facts["container"] = container.image
    number = lifecycle.begin(row["run_dir"], facts, lifecycle.holder(pid))
    return Begun(number, portable.environment_of(json.loads(spec)), container)


def _begin(submission: str, row: Dict[str, Any], job: str, pid: int) -> None:
    try:
        begun = begin_attempt(submission, row, job, pid)
    except lifecycle.Done as done:
        print(f"batch.py: run {row['run_id']} is not started: {done}", file=sys.stderr)
        sys.exit(EXIT_DONE_ALREADY)
    except lifecycle.Busy as busy:
        sys.exit(f"batch.py: run {row['run_id']} is not started: {busy}")
    values = {
        "FURNACE_RUN_DIR": row["run_dir"],
        "FURNACE_ATTEMPT": str(begun.number),
        "FURNACE_CODE": row["code"],
    }
    text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    for name, value in begun.variables.items():
        text += f"export {name}={value}\n"
    if begun.container:
        text += begun.container.shell(begun.number, begun.variables)
    # a path may hold bytes that are not UTF-8
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))


def _find_row(submission: str, key: str, value: Any) -> Dict[str, Any]:
    """The row of a submission whose `key` has this value. Empty if there is none."""
    file = os.path.join(submission, "rows.jsonl")
    try:
        found = find_in_order(file, key, value) if key == "row" else None
        for row in [found] if found else read_json_lines(file):
            if row.get(key) == value:
                return row
    except FileNotFoundError:
        pass  # the submission was killed while it was written
    return {}


def main(arguments: List[str]) -> None:
    """Run the command of the command line."""
    command, rest = "", arguments[1:]
    if arguments:
        command = arguments[0]
    if command == "begin-row":
        begin_row(rest[0], int(rest[1]), rest[2], int(rest[3]), *rest[4:5])
    elif command == "begin-run":
        begin_run(rest[0], rest[1], int(rest[2]))
    elif command == "decide":
        print(lifecycle.decide(rest[0], int(rest[1]), int(rest[2])))
    elif command == "guard":
        guard.watch(rest[0], int(rest[1]), int(rest[2]))
    elif command == "requeue":
        requeue(rest[0])
    elif command == "launch":
        launch(rest)
    else:
        wanted = "begin-row, begin-run, decide, guard, requeue or launch"
        sys.exit(f"batch.py: unknown command {command!r}; wanted {wanted}")


if __name__ == "__main__":
    main(sys.argv[1:])
