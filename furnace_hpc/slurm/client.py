"""Slurm's own commands, asked from the login node. Nothing else runs them, but submitit runs sbatch.

Each is asked once for everything, with a time limit; no answer is never taken for an empty one.
"""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.config.parsing.lookup import find_shipped
from furnace_hpc.slurm.environment import scrubbed
from furnace_hpc.slurm.parsing import (
    PLAIN,
    TIME_LIMIT,
    Job,
    array_id,
    minutes,
    read_accounting,
    read_config,
    read_queue,
    read_table,
    separator,
    whole,
)

# a loaded controller answers within seconds; clients themselves wait 10 s for a message
TIMEOUT_S = 30


@dataclass(frozen=True)
class CommandResult:
    """What a command said."""

    ok: bool
    text: str
    error: str


def has_slurm() -> bool:
    """Whether this is a machine that can submit to Slurm."""
    return shutil.which("sbatch") is not None


def require_slurm(cluster: str) -> None:
    """Raise ConfigError where nothing can be submitted."""
    up = f"`{find_shipped('slurm/devcluster')} up` starts a Slurm on this machine"
    if not has_slurm():
        raise ConfigError(
            f"cluster {cluster!r} needs Slurm, but there is no sbatch on PATH: use a login node, or --cluster local "
            f"for this machine alone; {up}"
        )
    if cluster == "devcluster" and not configuration():
        raise UnavailableError(f"cluster {cluster!r} does not answer: {up}")


def queue(users: Iterable[str] = ()) -> list[Job]:
    """All jobs of these users (default: this one), element by element; those that ended within MinJobAge too.

    A line that begins as a job's does and cannot be read is a job without id: who misses a job must look for those.

    Raises:
        UnavailableError: the controller did not answer.
    """
    who = ",".join(sorted(set(users))) or user_name()
    # By user: the controller then sends this user's jobs only, where a list of ids makes it send
    # everybody's.
    between = separator()
    fields = f"--format={between.join(('%F', '%K', '%T', '%r', '%j'))}"
    return read_queue(
        _run_or_raise("squeue", "--noheader", "--array", "--states=all", f"--user={who}", fields),
        between,
    )


def accounting(job_ids: Iterable[str]) -> list[Job] | None:
    """What the accounting has of these jobs and their elements; None where accounting is off.

    Raises:
        UnavailableError: the data base did not answer.
    """
    between = separator()
    command = ("sacct", "--allocations", "--noheader", "--parsable2", f"--delimiter={between}")
    answer = _ask(*command, "--format=JobID,State,ExitCode,JobName", f"--jobs={','.join(job_ids)}")
    return None if _is_off(answer) else read_accounting(_checked(answer), between)


def _is_off(answer: CommandResult) -> bool:
    return not answer.ok and "accounting storage is disabled" in answer.error.lower()


def user_name(uid: int | None = None) -> str:
    """A user (default: this one) as Slurm knows it, whatever $LOGNAME says; the number where it has no name."""
    uid = os.getuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def find_job(name: str) -> str | None:
    """The job id (of the array, for an array) of the job that has this name; None when Slurm knows none.

    Raises:
        UnavailableError: Slurm did not answer: nobody knows.
    """
    jobs = queue()
    for job in jobs:
        if job.job_id and job.name == name:
            return job.job_id.partition("_")[0]
    if any(not job.job_id for job in jobs):
        raise UnavailableError(
            "squeue gave lines that cannot be read, and the job may be one of them: try again"
        )
    command = (
        "sacct",
        "--allocations",
        "--noheader",
        "--parsable2",
        "--format=JobID",
        "--starttime=now-30days",
    )
    answer = _ask(*command, f"--name={name}")
    return None if _is_off(answer) else array_id(_checked(answer))


def node_job(job_id: str) -> str | None:
    """The id by which srun finds an element of an array; None where squeue does not list it."""
    return array_id(_run_or_raise("squeue", "--noheader", f"--jobs={job_id}", "--format=%A"))


def cancel(job_ids: Iterable[str]) -> None:
    """One scancel for all.

    Raises:
        UnavailableError: Slurm refused, or did not answer.
    """
    answer = _ask("scancel", *job_ids)
    if not answer.ok and "Invalid job id" not in answer.error:  # that one had ended already
        raise UnavailableError(f"scancel failed: {answer.error}: give the command again")


def run_checked(*command: str) -> str:
    """A command that acts on one job, and what it says; UnavailableError where Slurm refuses, or does not answer."""
    return _run_or_raise(*command)


def test_only(script: str) -> CommandResult:
    """What `sbatch --test-only` says of a batch script: when it could start, or why it never will."""
    return _ask("sbatch", "--test-only", stdin=script)


@cache
def configuration() -> dict[str, str]:
    """`scontrol show config`, key by key; empty when the controller does not answer."""
    answer = _ask("scontrol", "show", "config")
    return read_config(answer.text) if answer.ok else {}


def prefetch_site_limits(account: str | None, qos: str | None, partition: str | None) -> None:
    """Ask what a submission will want to know of the site; the answers are kept. For a thread, while others plan."""
    configuration()
    submit_limit(account, qos)
    longest_min(partition)


def cluster_name() -> str | None:
    """Slurm's ClusterName here; None when the controller does not answer."""
    return configuration().get("ClusterName")


@cache
def submit_limit(account: str | None, qos: str | None) -> int | None:
    """How many jobs (elements counted one by one) the user may have at a time, as far as the accounting tells.

    The least of what the association and the quality of service allow; None: no limit, or none that can be seen.
    """
    if configuration().get("AccountingStorageType") != "accounting_storage/slurmdbd":
        return None
    user = user_name()
    fields = "Account,MaxSubmitJobs,GrpSubmitJobs,DefaultQOS"
    # takes 20 ms to import, which `--help` need not wait for
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:  # each takes a fifth of a second
        both = [
            pool.submit(_rows, 4, "sacctmgr", "show", "assoc", f"user={user}", f"format={fields}"),
            pool.submit(
                _rows,
                3,
                "sacctmgr",
                "show",
                "qos",
                "format=Name,MaxSubmitJobsPerUser,GrpSubmitJobs",
            ),
        ]
        associations, qualities = (answer.result() for answer in both)
    # sacctmgr keeps the names of accounts and qualities in lower case, and sbatch takes them in
    # any.
    asked = (
        [row for row in associations if row[0].lower() == account.lower()]
        if account
        else associations[:1]
    )
    limits = [value for row in asked for value in row[1:3]]
    quality = qos or next((row[3] for row in asked if row[3]), "normal")
    limits += [
        value for row in qualities if row[0].lower() == quality.lower() for value in row[1:3]
    ]
    return min((most for value in limits if (most := whole(value)) is not None), default=None)


@cache
def longest_min(partition: str | None) -> int | None:
    """The longest time limit, in minutes, of these partitions (None: the default one); None: no limit is known.

    Many sites take a job that asks for more, and let it wait for ever (EnforcePartLimits=NO).
    """
    chosen = [f"--partition={partition}"] if partition else []
    answer = _ask("sinfo", "--noheader", "--format=%P|%l", *chosen)
    lines = read_table(answer.text, (PLAIN, TIME_LIMIT)).rows if answer.ok else []
    limits = [minutes(limit) for name, limit in lines if partition or name.endswith("*")]
    return (
        max((limit for limit in limits if limit is not None), default=None)
        if None not in limits
        else None
    )


def _rows(fields: int, *command: str) -> list[list[str]]:
    answer = _ask(*command, "--noheader", "--parsable2")
    return read_table(answer.text, (PLAIN,) * fields).rows if answer.ok else []


def _run_or_raise(*command: str) -> str:
    return _checked(_ask(*command))


def _checked(answer: CommandResult) -> str:
    if not answer.ok and "configuration source" in answer.error:
        raise UnavailableError(
            "Slurm's commands are here, and no cluster: use a login node, or give SLURM_CONF; `slurm/devcluster up` "
            "starts one on this machine"
        )
    if not answer.ok:
        raise UnavailableError(f"Slurm does not answer: {answer.error}: try again in a minute")
    return answer.text


def _ask(*command: str, stdin: str | None = None) -> CommandResult:
    try:
        done = subprocess.run(
            command,
            input=None if stdin is None else stdin.encode(),
            stdin=subprocess.DEVNULL if stdin is None else None,
            # or a long list of elements ends in dots
            env=scrubbed(os.environ) | {"SLURM_BITSTR_LEN": "0"},
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return CommandResult(False, "", f"{command[0]} took longer than {TIMEOUT_S} s")
    except OSError as error:
        return CommandResult(False, "", f"{command[0]}: {error.strerror}")
    text, said = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
    words = " ".join(said.split()) or f"{command[0]} ended with exit code {done.returncode}"
    return CommandResult(done.returncode == 0, text, words)
