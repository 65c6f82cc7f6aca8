"""What Slurm's commands print, as fields. Pure.

A site may print a banner or `CLUSTER: alpha` first, and a job's name may hold | and line breaks. So a line counts only
where it has the wanted number of fields and each looks as it must; the others are skipped, and kept to be counted.
"""

import re
import secrets
from dataclasses import dataclass
from typing import NamedTuple

NUMBER, ANY, PLAIN = r"[0-9]+", r".*", r"[^|]*"
STATE = r"[A-Za-z][A-Za-z_+,]*( by \S+)?"
TIME_LIMIT = r"[0-9:-]+|[A-Za-z_/]+"
JOB_ID = r"[0-9]\S*"
# id of the job or array, element, state, reason, name
_QUEUED = (NUMBER, r"N/A|[0-9][0-9,:%-]*", STATE, ANY, ANY)
_ACCOUNTED = (JOB_ID, STATE, r"[0-9:]*", ANY)  # id, state, exit code, name
_MOST_ELEMENTS = 4_000_001  # Slurm's own bound of MaxArraySize


@dataclass(frozen=True)
class Job:
    """One job, or one element of an array, as squeue or sacct has it."""

    job_id: str  # 12, or 12_3; empty: a line that begins as a job's does and cannot be read
    word: str  # state
    reason: str
    name: str = ""


class Table(NamedTuple):
    """The lines of an answer that fit, as fields, and those that do not; blank lines are neither."""

    rows: list[list[str]]
    others: list[str]


def separator() -> str:
    """A field separator that no job's name holds: it is new each time."""
    return f"|{secrets.token_hex(4)}|"


def read_table(text: str, fields: tuple[str, ...], between: str = "|") -> Table:
    """Lines of as many fields as there are patterns, each of which matches; the last field takes what is left."""
    rows, others = [], []
    for line in text.split("\n"):  # not splitlines: names hold \x0c and other ends of lines
        *parts, last = line.split(between, len(fields) - 1)
        parts = [*(part.strip() for part in parts), last]
        if len(parts) == len(fields) and all(map(_matches, fields, parts)):
            rows.append(parts)
        elif line.strip():
            others.append(line)
    return Table(rows, others)


def _matches(pattern: str, part: str) -> bool:
    return re.fullmatch(pattern, part, re.DOTALL) is not None


def read_queue(text: str, between: str) -> list[Job]:
    """Jobs of a squeue of the fields %F, %K, %T, %r, %j; a line that is broken is a job without id."""
    # a command in front of squeue may print its own format
    between = between if between in text else "|"
    table = read_table(text, _QUEUED, between)
    jobs = []
    for base, index, word, reason, name in table.rows:
        ids = [base] if index == "N/A" else expanded(f"{base}_[{index}]")
        jobs += [Job(job_id, word, reason, name) for job_id in ids or [""]]
    return jobs + _broken(table, between)


def read_accounting(text: str, between: str) -> list[Job]:
    """Jobs of a sacct of the fields JobID, State, ExitCode, JobName; a line that is broken is a job without id."""
    between = between if between in text else "|"
    table = read_table(text, _ACCOUNTED, between)
    jobs = [
        Job(job_id, word, f"exit code {code}", name)
        for ids, word, code, name in table.rows
        for job_id in expanded(ids) or [""]
    ]
    return jobs + _broken(table, between)


def _broken(table: Table, between: str) -> list[Job]:
    """Lines with a separator: what has none is a banner, or the rest of a name."""
    return [Job("", "", line) for line in table.others if between in line]


def expanded(job_id: str) -> list[str]:
    """The elements of `12_[0-3,7,8-12:2%5]`, as Slurm writes those that never started; others are what they are.

    Empty where the elements cannot be read, or are not all there.
    """
    base, bracket, rest = job_id.partition("_[")
    if not bracket:
        return [job_id]
    inside, closed, _ = rest.partition("]")
    found: list[int] = []
    for part in inside.partition("%")[0].split(","):
        span = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?", part)
        if not span or not closed:
            return []
        elements = range(int(span[1]), int(span[2] or span[1]) + 1, int(span[3] or 1) or 1)
        if len(found) + len(elements) > _MOST_ELEMENTS:
            return []
        found += elements
    return [f"{base}_{number}" for number in found]


def array_id(text: str) -> str | None:
    """The first job id of an answer that lists ids alone: of the array, for an element, and of a heterogeneous job."""
    rows = read_table(text, (r"[0-9]+([_+.]\S*)?",)).rows
    found = re.match(NUMBER, rows[0][0]) if rows else None
    return found[0] if found else None


def submitted_id(text: str) -> str | None:
    """The id that sbatch prints, among whatever else is printed."""
    found = re.findall(r"^Submitted batch job ([0-9]+)(?: on cluster \S+)?\s*$", text, re.MULTILINE)
    return found[-1] if found else None


def read_config(text: str) -> dict[str, str]:
    """`scontrol show config`, key by key."""
    found = (re.fullmatch(r"([A-Za-z][\w-]*)\s*= ?(.*?)\s*", line) for line in text.split("\n"))
    return {pair[1]: pair[2] for pair in found if pair}


def whole(text: str) -> int | None:
    """A limit or a size such as `64`, `64+` (and more); None where there is none."""
    found = re.fullmatch(r"([0-9]{1,18})\+?", text.strip())
    return int(found[1]) if found else None


def minutes(text: str) -> int | None:
    """A time in whole minutes: `1-02:03:04`, `02:03:04`, `5:00`, `30`, `1-12`; None: no limit, or not a time."""
    found = re.fullmatch(
        r"(?:([0-9]{1,6})-)?([0-9]{1,9})(?::([0-9]{1,9}))?(?::([0-9]{1,9}))?", text.strip()
    )
    if not found:
        return None
    days, *parts = (int(part) if part else 0 for part in found.groups())
    given = [int(part) for part in found.groups()[1:] if part]
    if found[1]:  # days-hours:minutes:seconds
        hours, mins, seconds = parts
    else:  # minutes, minutes:seconds, hours:minutes:seconds
        hours, mins, seconds = given if len(given) == 3 else [0, *given, 0][:3]
    return days * 1440 + hours * 60 + mins + seconds // 60
