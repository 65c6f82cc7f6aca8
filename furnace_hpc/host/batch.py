"""What a batch script calls on a node's own Python: standard library only, syntax of Python 3.6.

    python3 batch.py begin-row SUBMISSION ROW JOB PID [PYTHON]   begins that row's run, prints shell assignments; the
                                                        ranks' Python says first whether GPUs can be used
    python3 batch.py begin-run RUN_DIR JOB PID          the same for a run folder, as its newest submission has it
    python3 batch.py decide RUN_DIR ATTEMPT RC          prints done | requeue | fail
    python3 batch.py requeue JOB                        asks Slurm to start this job again; waits while it is away
    python3 batch.py launch COMMAND ...                 execs COMMAND with the stop signals blocked

Exit codes: 0 done; 3 the run is done already; 1 anything else, with one line that says what.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from typing import Any, Dict, List

if __name__ == "__main__":
    # Not the folder of this script, whose modules are none of the standard library's business, but
    # the package's.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from furnace_hpc.host import gpu_check, lifecycle
from furnace_hpc.host.regular_file import open_regular

EXIT_DONE_ALREADY = 3
# four minutes: a controller restarts, or its twin takes over
REQUEUE_PAUSES_S = (1, 2, 4, 8, 15, 30, 60, 60, 60)
SCONTROL_TIMEOUT_S = 60
# Slurm's words when its controller is away or has lost an answer; a second request does no harm.
AWAY = re.compile(
    r"Unable to contact|timed out|Connection (refused|reset)|not connected|standby mode|Zero Bytes|"
    r"(receive|send) failure|Rate limit|temporarily unable",
    re.IGNORECASE,
)


def begin_row(submission: str, index: int, job: str, pid: int, python: str = "") -> None:
    """Begin the run of one row, and print what the batch script needs to know of it."""
    row = _read_row(submission, "row", index)
    against = gpu_check.may_begin(submission, row["run_id"], job, python)
    if against:
        sys.exit("batch.py: run %s is %s" % (row["run_id"], against))
    _begin(submission, row, job, pid)


def begin_run(run_dir: str, job: str, pid: int) -> None:
    """As `begin_row`, for a run folder: with the facts of the newest submission that it is in."""
    run_dir = os.path.abspath(run_dir)
    submissions = os.path.join(os.path.dirname(run_dir), "submissions")
    try:
        numbers = sorted(
            (int(name) for name in os.listdir(submissions) if name.isdigit()), reverse=True
        )
    except OSError:
        sys.exit("batch.py: %s is no run folder that submit has made" % run_dir)
    for number in numbers:
        submission = os.path.join(submissions, str(number))
        row = _find_row(submission, "run_id", os.path.basename(run_dir))
        if row:
            return _begin(submission, row, job, pid)
    sys.exit("batch.py: no submission in %s has run %s" % (submissions, os.path.basename(run_dir)))


def requeue(job: str) -> None:
    """Ask Slurm to start this very job again, with growing pauses while its controller is away."""
    for pause_s in REQUEUE_PAUSES_S + (0,):
        said = _scontrol_requeue(job)
        if not said:
            return
        if not AWAY.search(said):
            sys.exit(
                "batch.py: job %s was not requeued: %s; the follow-up job or the next submit sends it"
                % (job, said)
            )
        print("batch.py: job %s is not requeued yet: %s" % (job, said), file=sys.stderr, flush=True)
        time.sleep(pause_s)
    sys.exit(
        "batch.py: Slurm stays away: the follow-up job or the next submit sends job %s's run again"
        % job
    )


def launch(command: List[str]) -> None:
    """Replace this process by `command` with the stop signals blocked.

    A signal during the seconds of start-up stays pending until the training's handlers unblock it, instead of
    killing the rank.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, lifecycle.STOP_SIGNALS)
    os.execvp(command[0], command)


def _scontrol_requeue(job: str) -> str:
    """What scontrol says against it; empty when it has done so."""
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SCONTROL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "scontrol timed out"
    except OSError as error:
        return "scontrol: %s" % error.strerror
    words = " ".join(done.stdout.decode("utf-8", "replace").split())
    return (words or "scontrol exits with %d" % done.returncode) if done.returncode else ""


def _begin(submission: str, row: Dict[str, Any], job: str, pid: int) -> None:
    with open_regular(os.path.join(submission, "specs.jsonl")) as file:
        file.seek(row["spec_at"][0])
        lifecycle.write_spec(row["run_dir"], file.read(row["spec_at"][1]).decode("utf-8"))
    try:
        number = lifecycle.begin(
            row["run_dir"], dict(row["facts"], job_id=job), lifecycle.holder(pid)
        )
    except lifecycle.Done as done:
        print("batch.py: run %s is left alone: %s" % (row["run_id"], done), file=sys.stderr)
        sys.exit(EXIT_DONE_ALREADY)
    except lifecycle.Busy as busy:
        sys.exit("batch.py: run %s is left alone: %s" % (row["run_id"], busy))
    values = {
        "FURNACE_RUN_DIR": row["run_dir"],
        "FURNACE_ATTEMPT": str(number),
        "FURNACE_CODE": row["code"],
    }
    text = "".join("%s=%s\n" % (name, shlex.quote(value)) for name, value in values.items())
    # a path may hold bytes that are not UTF-8
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))


def _read_row(submission: str, key: str, value: Any) -> Dict[str, Any]:
    row = _find_row(submission, key, value)
    return row or sys.exit("batch.py: %s has no %s %s" % (submission, key, value))


def _find_row(submission: str, key: str, value: Any) -> Dict[str, Any]:
    """The row of a submission whose `key` has this value; empty when there is none."""
    try:
        with open_regular(os.path.join(submission, "rows.jsonl"), "r") as file:
            for line in file:
                row = json.loads(line)
                if row[key] == value:
                    return dict(row)
    except FileNotFoundError:
        pass  # a submission that was killed while it was written
    return {}


def main(arguments: List[str]) -> None:
    """Do what the command line says."""
    verb, rest = (arguments or [""])[0], arguments[1:]
    if verb == "begin-row":
        begin_row(rest[0], int(rest[1]), rest[2], int(rest[3]), *rest[4:5])
    elif verb == "begin-run":
        begin_run(rest[0], rest[1], int(rest[2]))
    elif verb == "decide":
        print(lifecycle.decide(rest[0], int(rest[1]), int(rest[2])))
    elif verb == "requeue":
        requeue(rest[0])
    elif verb == "launch":
        launch(rest)
    else:
        sys.exit(
            "batch.py: unknown command %r; wanted begin-row, begin-run, decide, requeue or launch"
            % verb
        )


if __name__ == "__main__":
    main(sys.argv[1:])
