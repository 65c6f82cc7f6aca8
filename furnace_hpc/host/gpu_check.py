"""Check that torch can use the GPUs of a job, before its run begins, once per submission.

If it cannot, one run of the submission begins and fails with the reason. No other run begins. The
result is in `gpus.json` of the submission. Standard library only, syntax of Python 3.6.
"""

import json
import os
import socket
import subprocess
import sys
from typing import Any, Dict, List, Mapping, Optional, Sequence

from furnace_hpc.host.durable_files import create_complete_file
from furnace_hpc.host.json_lines import read_json, read_json_lines

EXIT_UNUSABLE = 4  # of `python -m furnace_hpc.engine.ranks.devices`
CHECK_TIMEOUT_S = 600  # torch from a cold network file system takes minutes
_NO_GPUS = ("", "-1")  # CUDA_VISIBLE_DEVICES of a process that must use no GPU

Record = Dict[str, Any]


def allocated_gpus(environment: Mapping[str, str]) -> str:
    """The GPUs that this process may use, comma-separated. Empty: it uses the CPU."""
    # Slurm sets NoDevFiles if it gives no GPU
    visible = environment.get("CUDA_VISIBLE_DEVICES", "NoDevFiles")
    # DeepSpeed reads DS_ACCELERATOR
    if environment.get("DS_ACCELERATOR") == "cpu" or visible in _NO_GPUS:
        return ""
    if visible != "NoDevFiles":
        return visible
    named = environment.get("SLURM_STEP_GPUS") or environment.get("SLURM_JOB_GPUS")
    return named or _first_gpus(environment.get("SLURM_GPUS_ON_NODE", ""))


def _first_gpus(count: str) -> str:
    if not count.isdigit() or len(count) >= 4:
        return ""
    return ",".join(str(number) for number in range(int(count)))


def stop_reason(submission: str) -> str:
    """Why new runs of a submission do not begin. Empty if they may."""
    found = _read(submission)
    if found.get("usable", True):
        return ""
    run_id, job_id, host, error = (found.get(k) for k in ("run_id", "job_id", "host", "error"))
    return f"not started: torch cannot use the GPUs ({run_id}, job {job_id} on {host}: {error})"


def find_refusal(submission: str, run_id: str, job: str, python: Sequence[str]) -> str:
    """Empty if the job's run may begin, else the reason why not.

    The first job whose GPUs cannot be used begins its run, which fails with the reason. Pending
    jobs are cancelled.

    Args:
        submission: folder of the submission.
        run_id: the run of the job.
        job: id of the job.
        python: the words that start the ranks' Python. Nothing is checked without them.
    """
    if not any(python) or not allocated_gpus(os.environ):
        return ""
    found = _read(submission)
    if found.get("job_id") == job:
        return ""
    if found:
        return stop_reason(submission)
    error = _error_of_gpus(python)
    if error is None:
        return ""
    host = socket.gethostname()
    record = {"usable": not error, "job_id": job, "run_id": run_id, "host": host}
    if error:
        record["error"] = error
    if not _write(submission, record):
        return stop_reason(submission)
    if error:
        _cancel_pending(submission)
    return ""


def _error_of_gpus(python: Sequence[str]) -> Optional[str]:
    """Why torch cannot use the GPUs. Empty if it can, None if that is unknown."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    try:
        checked = subprocess.run(
            list(python) + ["-m", "furnace_hpc.engine.ranks.devices"],
            env=dict(os.environ, PYTHONPATH=root, PYTHONSAFEPATH="1"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            timeout=CHECK_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # the ranks will report what is wrong
    if checked.returncode == 0:
        return ""
    if checked.returncode != EXIT_UNUSABLE:
        return None
    return checked.stdout.decode("utf-8", "replace").strip()[:500] or "no reason given"


def _cancel_pending(submission: str) -> None:
    """Cancel the pending array elements of the submission."""
    arrays = _arrays(submission)
    if arrays:
        try:
            subprocess.call(["scancel", "--state=PENDING"] + arrays, stdout=sys.stderr, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"batch.py: pending jobs were not cancelled: {error}", file=sys.stderr)


def _arrays(submission: str) -> List[str]:
    """Job ids of the submission's arrays."""
    kinds, found = {}, set()
    try:
        for event in read_json_lines(os.path.join(submission, "journal.jsonl")):
            name = str(event.get("name"))
            if event.get("event") == "intent":
                kinds[name] = event.get("kind")
            elif kinds.get(name) == "array" and event.get("job_id"):
                found.add(str(event["job_id"]))
    except OSError:
        pass
    by_hand = os.environ.get("SLURM_ARRAY_JOB_ID")  # an array that the user submitted with sbatch
    if by_hand:
        found.add(by_hand)
    return sorted(found)


def _read(submission: str) -> Record:
    try:
        found = read_json(os.path.join(submission, "gpus.json"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(submission: str, record: Record) -> bool:
    """Write gpus.json. False if another job has written it first."""
    path = os.path.join(submission, "gpus.json")
    try:
        create_complete_file(path, json.dumps(record).encode("utf-8"))
    except FileExistsError:
        return False
    except OSError as error:
        print(f"batch.py: {path} was not written: {error}", file=sys.stderr)
    return True
