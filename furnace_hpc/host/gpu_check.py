"""Whether the GPUs that a job was given can be used: asked before its run begins, until a job of the submission can.

Where they cannot, one run of the submission begins and fails with the reason; no other does. The file `gpus.json` of
the submission says so. Standard library only, syntax of Python 3.6: the host side uses it.
"""

import json
import os
import socket
import subprocess
import sys
from typing import Any, Dict, List, Mapping

from furnace_hpc.host.regular_file import open_regular, read_regular_text

EXIT_UNUSABLE = 4  # of `python -m furnace_hpc.engine.devices`
ASK_S = 600  # torch from a cold network file system takes minutes
_HIDDEN = ("", "-1")  # CUDA_VISIBLE_DEVICES of somebody who wants none

Record = Dict[str, Any]


def given(environment: Mapping[str, str]) -> str:
    """The GPUs that this process was given, comma-separated; empty where there are none, or they are not wanted."""
    # Slurm's own word where it gave none
    visible = environment.get("CUDA_VISIBLE_DEVICES", "NoDevFiles")
    # the first is DeepSpeed's own word for it
    if environment.get("DS_ACCELERATOR") == "cpu" or visible in _HIDDEN:
        return ""
    if visible != "NoDevFiles":
        return visible
    count = environment.get("SLURM_GPUS_ON_NODE", "")
    numbers = (
        ",".join(str(number) for number in range(int(count)))
        if count.isdigit() and len(count) < 4
        else ""
    )
    return environment.get("SLURM_STEP_GPUS") or environment.get("SLURM_JOB_GPUS") or numbers


def stopped_by(submission: str) -> str:
    """Why runs of a submission that have not begun do not begin; empty where they may."""
    found = _read(submission)
    if found.get("usable", True):
        return ""
    words = "%s, job %s on %s: %s" % tuple(
        str(found.get(key)) for key in ("run_id", "job_id", "host", "error")
    )
    return "not started, for GPUs cannot be used (%s)" % words


def may_begin(submission: str, run_id: str, job: str, python: str) -> str:
    """Empty, or why this job's run is not to begin: an earlier one could use none of its GPUs.

    The first job that finds so begins its run, which fails with the reason; jobs that wait are cancelled.
    """
    if not python or not given(os.environ):
        return ""
    found = _read(submission)
    if found:
        return "" if found.get("job_id") == job else stopped_by(submission)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = dict(os.environ, PYTHONPATH=root, PYTHONSAFEPATH="1")
    try:
        asked = subprocess.run(
            [python, "-m", "furnace_hpc.engine.devices"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            timeout=ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # its ranks say what is wrong with it
    record = {
        "usable": asked.returncode == 0,
        "job_id": job,
        "run_id": run_id,
        "host": socket.gethostname(),
    }
    if asked.returncode == EXIT_UNUSABLE:
        record["error"] = asked.stdout.decode("utf-8", "replace").strip()[:500]
    elif asked.returncode:
        return ""
    if not _write(submission, record):
        return stopped_by(submission)
    if not record["usable"]:
        _cancel_waiting(submission)
    return ""


def _cancel_waiting(submission: str) -> None:
    """Cancel the elements of the submission's arrays that have not started; what starts all the same is not begun."""
    arrays = _arrays(submission)
    if arrays:
        try:
            subprocess.call(["scancel", "--state=PENDING"] + arrays, stdout=sys.stderr, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            print("batch.py: jobs that wait were not cancelled: %s" % error, file=sys.stderr)


def _arrays(submission: str) -> List[str]:
    kinds, found = {}, []
    try:
        with open_regular(
            os.path.join(submission, "journal.jsonl"), "r", encoding="utf-8", errors="replace"
        ) as file:
            for line in file:
                try:
                    event = json.loads(line)
                    if event["event"] == "intent":
                        kinds[event["name"]] = event["kind"]
                    elif event["event"] == "submitted" and kinds.get(event["name"]) == "array":
                        found.append(str(event["job_id"]))
                except (ValueError, KeyError, TypeError):
                    continue  # torn by a crash
    except OSError:
        pass
    array = os.environ.get("SLURM_ARRAY_JOB_ID")  # of an array that was submitted by hand
    return sorted(set(found + ([array] if array else [])))


def _read(submission: str) -> Record:
    try:
        found = json.loads(read_regular_text(os.path.join(submission, "gpus.json")))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _write(submission: str, record: Record) -> bool:
    """Make the file whole; False where another job was first."""
    path = os.path.join(submission, "gpus.json")
    aside = "%s.%s.%d" % (path, record["host"], os.getpid())
    try:
        with open(aside, "w", encoding="utf-8") as file:
            json.dump(record, file)
        os.link(aside, path)
    except FileExistsError:
        return False
    except OSError as error:
        print("batch.py: %s was not written: %s" % (path, error), file=sys.stderr)
    finally:
        try:
            os.unlink(aside)
        except OSError:
            pass
    return True
