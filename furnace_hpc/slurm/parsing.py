"""Split the output of Slurm's commands into fields. No command is run here.

A site may print a banner or `CLUSTER: alpha` first. A job's name may hold | and line breaks. So a
line counts only if it has the wanted number of fields, and each field matches its pattern. Other
lines are kept apart.
"""

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from furnace_hpc.slurm.nodelist import array_elements

NUMBER, ANY, PLAIN = r"[0-9]+", r".*", r"[^|]*"
STATE = r"[A-Za-z][A-Za-z_+,]*( by \S+)?"
TIME_LIMIT = r"[0-9:-]+|[A-Za-z_/]+"
JOB_ID = r"[0-9]\S*"
# id of the job or array, element, state, reason, start, partition, name
_QUEUED = (NUMBER, r"N/A|[0-9][0-9,:%-]*", STATE, ANY, ANY, ANY, ANY)
_UNUSABLE = re.compile(
    r"(down|drain|drng|fail|maint|boot|unk|inval|planned_down|no_respond|future|futr)",
    re.IGNORECASE,
)
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}")
_ACCOUNTED = (JOB_ID, STATE, r"[0-9:]*", ANY)  # id, state, exit code, name


@dataclass(frozen=True)
class Job:
    """One job, or one element of an array, as squeue or sacct prints it."""

    job_id: str  # 12, or 12_3; empty if the line has separators but cannot be read
    word: str  # state
    reason: str
    name: str = ""
    start: str = ""  # local time at which Slurm expects it to start, if it waits and Slurm says so
    partition: str = ""  # of a job that waits: one, or a list with commas


class PendingJob(NamedTuple):
    """A job or array of any user that waits in a partition."""

    base_id: str
    priority: int  # 0 if it is held
    partition: str
    reason: str


class Table(NamedTuple):
    """An output's matching lines, as fields, and its other lines. Blank lines are in neither."""

    rows: list[list[str]]
    others: list[str]


def separator() -> str:
    """Make a random field separator, which no job's name holds."""
    return f"|{secrets.token_hex(4)}|"


def read_table(text: str, fields: tuple[str, ...], between: str = "|") -> Table:
    """Split each line at `between` into one field per pattern. The last takes the rest."""
    rows, others = [], []
    matches = [_matcher(field) for field in fields]
    for line in text.split("\n"):  # not splitlines(): it also splits at \x0c, which names may hold
        *parts, last = line.split(between, len(fields) - 1)
        parts = [*(part.strip() for part in parts), last]
        is_row = len(parts) == len(fields)
        if is_row and all(match(part) for match, part in zip(matches, parts, strict=True)):
            rows.append(parts)
        elif line.strip():
            others.append(line)
    return Table(rows, others)


@cache
def _matcher(pattern: str) -> Callable[[str], object]:
    """Return what matches a whole field. It is made once, not for each line."""
    return re.compile(pattern, re.DOTALL).fullmatch


def read_queue(text: str, between: str) -> list[Job]:
    """Read squeue with the fields of _QUEUED. An unreadable line is a job without id."""
    between = _used_separator(text, between)
    table = read_table(text, _QUEUED, between)
    jobs = []
    for base, index, word, reason, start, partition, name in table.rows:
        ids = [base]
        if index != "N/A":
            ids = array_elements(f"{base}_[{index}]")
        waits = word == "PENDING"
        start = start if waits and _TIME.fullmatch(start) else ""
        place = partition if waits else ""
        jobs += [Job(job_id, word, reason, name, start, place) for job_id in ids or [""]]
    return jobs + _unreadable(table, between)


def read_pending(text: str) -> list[PendingJob]:
    """Read squeue with the fields %F, %Q, %P, %r."""
    rows = read_table(text, (NUMBER, r"[0-9]{1,19}", PLAIN, ANY)).rows
    return [PendingJob(base, int(priority), name, why) for base, priority, name, why in rows]


def read_accounting(text: str, between: str) -> list[Job]:
    """Read sacct with the fields JobID, State, ExitCode, JobName.

    An unreadable line is a job without id.
    """
    between = _used_separator(text, between)
    table = read_table(text, _ACCOUNTED, between)
    jobs = [
        Job(job_id, word, f"exit code {code}", name)
        for ids, word, code, name in table.rows
        for job_id in array_elements(ids) or [""]
    ]
    return jobs + _unreadable(table, between)


def _used_separator(text: str, asked: str) -> str:
    """The separator of an output: a site's wrapper of squeue may ignore --format and print |."""
    return asked if asked in text else "|"


def _unreadable(table: Table, between: str) -> list[Job]:
    """Lines with a separator. A line without one is a banner, or the rest of a name."""
    return [Job("", "", line) for line in table.others if between in line]


def array_id(text: str) -> str | None:
    """Read the first id of an output that lists job ids: 12 of `12`, `12_3` (array) or `12+1`."""
    for row in read_table(text, (r"[0-9]+([_+.]\S*)?",)).rows:
        return re.split("[_+.]", row[0])[0]
    return None


def is_usable(node_state: str) -> bool:
    """Whether a node in this state (%t of sinfo) takes jobs now, or when its jobs end."""
    return not _UNUSABLE.match(node_state)


def submitted_id(text: str) -> str | None:
    """Read the job id that sbatch prints, among other lines."""
    pattern = r"^Submitted batch job ([0-9]+)(?: on cluster \S+)?\s*$"
    found = re.findall(pattern, text, re.MULTILINE)
    return found[-1] if found else None


def read_config(text: str) -> dict[str, str]:
    """Read `scontrol show config`, one key per line."""
    found = (re.fullmatch(r"([A-Za-z][\w-]*)\s*= ?(.*?)\s*", line) for line in text.split("\n"))
    return {pair[1]: pair[2] for pair in found if pair}


def largest_array(settings: Mapping[str, str]) -> int | None:
    """Return the most elements of an array. Their indices are below it. None if it is not known.

    It is MaxArraySize, or max_array_tasks of SchedulerParameters if that is smaller.

    Args:
        settings: of `read_config`.
    """
    tasks = re.findall(r"\bmax_array_tasks=([0-9]+)", settings.get("SchedulerParameters", ""))
    sizes = map(parse_count, [settings.get("MaxArraySize", ""), *tasks])
    return min((size for size in sizes if size is not None), default=None)


def parse_count(text: str) -> int | None:
    """Read a limit or size: `64`, or `64+` (64 or more). None if the text is no number."""
    found = re.fullmatch(r"([0-9]{1,18})\+?", text.strip())
    return int(found[1]) if found else None


def parse_minutes(text: str) -> int | None:
    """Read a time in whole minutes. None if there is no limit, or the text is no time.

    Slurm writes `1-02:03:04`, `1-12` (days-hours), `02:03:04`, `5:00` (minutes:seconds) and `30`
    (minutes).
    """
    found = re.fullmatch(
        r"(?:([0-9]{1,6})-)?([0-9]{1,9})(?::([0-9]{1,9}))?(?::([0-9]{1,9}))?", text.strip()
    )
    if not found:
        return None
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part]
    if not days and len(numbers) < 3:
        numbers = [0, *numbers]  # no hours
    hours, mins, seconds, *_ = [*numbers, 0, 0]
    return int(days or 0) * 1440 + hours * 60 + mins + seconds // 60
