"""The notifications of a submission: a file keeps each until a webhook has accepted it.

    submissions/<n>/notice.json   all runs have ended: the text, and when it was tried and sent
                    stuck.json    the same, if its follow-up job could not continue
                    notice.lock   exists while a process sends one

A compute node may have no network. Then `furnace status` and `furnace submit --wait` send it, or
`submit(wait=True)` in Python.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.webhook_file import read_webhook
from furnace_hpc.host import lease
from furnace_hpc.host.durable_files import create_file
from furnace_hpc.host.json_lines import read_json
from furnace_hpc.runs.folder import GridFolder, write_json

TIMEOUT_S = 10.0  # of one try, the look-up of the name included
PAUSES_S = (2.0, 10.0)  # before the second and third try
NOTICE, STUCK, LOCK = "notice.json", "stuck.json", "notice.lock"
STALE_S = 120  # age of a lock whose process cannot be seen from here
AGAIN_S = 600  # between tries of commands on the login node
EXPIRED_S = 3 * 86400  # older notifications are not sent


def webhook_of(submission: Path) -> str:
    """Return the file with the webhook's URL, from the submission's profile. Empty if none."""
    return _of_profile(submission, "notify")


def is_local(submission: Path) -> bool:
    """Whether it was for the queue on one machine, so that no follow-up job ends it."""
    return _of_profile(submission, "executor") == "local"


def _of_profile(submission: Path, key: str) -> str:
    """Return a value of the submission's profile. Empty if there is none."""
    try:
        return str(read_json(submission / "profile.json").get(key) or "")
    except (OSError, ValueError, AttributeError):  # an older or damaged submission
        return ""


def put(submission: Path, notice: dict[str, Any], name: str = NOTICE) -> None:
    """Keep a notification until it is sent. A submission has one of each name.

    If it was sent, it stays as it is.
    """
    known = _read(submission, name)
    if known is None or not known["sent_unix_s"]:
        times = {"made_unix_s": time.time(), "tried_unix_s": None, "sent_unix_s": None}
        write_json(submission / name, {**times, "notice": notice})


def is_unsent(submission: Path, name: str = NOTICE) -> bool:
    """Whether there is a notification that was not sent."""
    known = _read(submission, name)
    return known is not None and not known["sent_unix_s"]


def send(
    submission: Path,
    pauses_s: Sequence[float] = PAUSES_S,
    timeout_s: float = TIMEOUT_S,
    name: str = NOTICE,
) -> str:
    """Send a submission's notification unless it was sent. Return the problem, empty if none.

    After the webhook has accepted it, and that is recorded, it is never sent again. A kill between
    the two sends it twice.
    """
    with _claim(submission) as is_ours:
        known = _read(submission, name)
        if not is_ours or known is None or known["sent_unix_s"]:
            return ""
        from furnace_hpc.runs.notices.delivery import deliver  # urllib is slow to import

        try:
            url = read_webhook(webhook_of(submission))
        except ConfigError as error:
            problem = str(error)
        else:
            content = json.dumps(known["notice"], allow_nan=False).encode()
            problem = deliver(url, content, pauses_s, timeout_s)
        time_of = "tried_unix_s" if problem else "sent_unix_s"
        write_json(submission / name, known | {time_of: time.time()})
        return problem


def send_missing(folder: GridFolder, timeout_s: float = 5.0) -> Iterator[str]:
    """Send the notifications that jobs could not send. Yield a line for each, sent or not.

    Each is tried once in ten minutes, for three days. If the user has submitted again, or the runs
    have ended since, it is not reported that a follow-up job could not continue.
    """
    every = folder.all_submissions()
    waiting = [(submission, NOTICE) for submission in every]
    waiting += [(newest, STUCK) for newest in every[-1:] if _read(newest, NOTICE) is None]
    for submission, name in waiting:
        known = _read(submission, name)
        if known is None or known["sent_unix_s"]:
            continue
        now_s = time.time()
        tried_s, made_s = known["tried_unix_s"] or 0, known["made_unix_s"]
        if now_s - made_s > EXPIRED_S or now_s - tried_s < AGAIN_S:
            continue
        if problem := send(submission, (), timeout_s, name):
            yield f"WARNING: the notification could not be sent: {problem}"
        elif not is_unsent(submission, name):
            sender = "queue on this machine" if is_local(submission) else "follow-up job"
            yield f"sent the notification that the {sender} could not send"


def _read(submission: Path, name: str) -> dict[str, Any] | None:
    """Return the content of a notification. None if it is missing or damaged."""
    try:
        content = read_json(submission / name)
    except (OSError, ValueError):
        return None
    names = {"made_unix_s", "tried_unix_s", "sent_unix_s", "notice"}
    return content if isinstance(content, dict) and names <= content.keys() else None


@contextmanager
def _claim(submission: Path) -> Iterator[bool]:
    """Let one process send at a time. Yields whether this one may."""
    lock = submission / LOCK
    if _is_stale(lock):
        lock.unlink(missing_ok=True)
    try:
        create_file(lock, json.dumps(lease.holder()).encode())
    except OSError:  # another process sends it, or the disk is full
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            os.unlink(lock)  # noqa: PTH108


def _is_stale(lock: Path) -> bool:
    try:
        alive, age_s = lease.is_alive(read_json(lock)), time.time() - lock.stat().st_mtime
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return alive is False or age_s > STALE_S
