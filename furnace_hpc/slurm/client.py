"""Run Slurm's commands on the login node. No other module does, except that submitit runs sbatch.

Each command is run once for all jobs, with a time limit. A failed command is never taken for an
empty output.
"""

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.slurm.environment import clean_environment
from furnace_hpc.slurm.parsing import (
    PLAIN,
    TIME_LIMIT,
    Job,
    PendingJob,
    array_id,
    is_usable,
    parse_count,
    parse_minutes,
    read_accounting,
    read_config,
    read_pending,
    read_queue,
    read_table,
    separator,
)
from furnace_hpc.slurm.sbatch_errors import has_no_cluster

# A loaded controller answers within seconds. Slurm's commands themselves wait 10 s for a message.
TIMEOUT_S = 30
SLURMDBD = "accounting_storage/slurmdbd"
_SACCT = ("sacct", "--allocations", "--noheader", "--parsable2")


@dataclass(frozen=True)
class CommandResult:
    """The outcome of a command."""

    ok: bool
    text: str  # stdout
    error: str  # stderr in one line, or the exit code


def has_slurm() -> bool:
    """Whether jobs can be submitted to Slurm from this machine."""
    return shutil.which("sbatch") is not None


def require_slurm(cluster: str) -> None:
    """Check that a job can be submitted.

    Raises:
        ConfigError: there is no sbatch.
        UnavailableError: the test cluster is not up.
    """
    up = "`furnace devcluster up` starts a Slurm on this machine"
    if not has_slurm():
        raise ConfigError(
            f"cluster {cluster!r} needs Slurm, but there is no sbatch on PATH: use a login node, "
            f"or --cluster local to run on this machine. {up}"
        )
    if cluster == "devcluster" and not configuration():
        raise UnavailableError(f"cluster {cluster!r} does not answer. {up}")


def queue(users: Iterable[str] = ()) -> list[Job]:
    """List the jobs of these users (default: this one), one per array element.

    Jobs that ended less than MinJobAge ago are listed too. A line that cannot be read is a job
    without id: a caller that misses a job must look for those.

    Raises:
        UnavailableError: the controller did not answer.
    """
    # With --user the controller sends the jobs of these users alone. With --jobs it sends all jobs.
    names = ",".join(sorted(set(users))) or user_name()
    between = separator()
    fields = between.join(("%F", "%K", "%T", "%r", "%S", "%P", "%j"))
    options = ("--noheader", "--array", "--states=all", f"--user={names}", f"--format={fields}")
    return read_queue(run_checked("squeue", *options), between)


def pending(partitions: Iterable[str]) -> list[PendingJob]:
    """List the waiting jobs and arrays of all users in these partitions, once per partition.

    A site may show only your own (PrivateData).

    Raises:
        UnavailableError: the controller did not answer.
    """
    options = ("--noheader", "--priority", "--states=PENDING", "--format=%F|%Q|%P|%r")
    return read_pending(run_checked("squeue", *options, f"--partition={','.join(partitions)}"))


def accounting(job_ids: Iterable[str]) -> list[Job] | None:
    """List these jobs and their elements as the accounting has them. None if accounting is off.

    Raises:
        UnavailableError: the database did not answer.
    """
    between = separator()
    fields = ("--format=JobID,State,ExitCode,JobName", f"--delimiter={between}")
    answer = _run(*_SACCT, *fields, f"--jobs={','.join(job_ids)}")
    if _is_off(answer):
        return None
    return read_accounting(_checked(answer), between)


def _is_off(answer: CommandResult) -> bool:
    return not answer.ok and "accounting storage is disabled" in answer.error.lower()


def user_name(uid: int | None = None) -> str:
    """Name a user (default: this one) as Slurm does, independent of $LOGNAME.

    A user without a name is its number.
    """
    if uid is None:
        uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def find_job(name: str) -> str | None:
    """Find the id of the job or array with this name. None if Slurm has no such job.

    Raises:
        UnavailableError: Slurm did not answer, so the job may exist.
    """
    jobs = queue()
    for job in jobs:
        if job.job_id and job.name == name:
            return job.job_id.partition("_")[0]
    if any(not job.job_id for job in jobs):
        raise UnavailableError(
            "squeue printed lines that cannot be read, and the job may be one of them. Try again"
        )
    answer = _run(*_SACCT, "--format=JobID", "--starttime=now-30days", f"--name={name}")
    if _is_off(answer):
        return None
    return array_id(_checked(answer))


def node_job(job_id: str) -> str | None:
    """Find the id by which srun finds an array element. None if squeue does not list it."""
    return array_id(run_checked("squeue", "--noheader", f"--jobs={job_id}", "--format=%A"))


def cancel(job_ids: Iterable[str]) -> None:
    """Cancel all these jobs with one scancel.

    Raises:
        UnavailableError: Slurm refused, or did not answer.
    """
    answer = _run("scancel", *job_ids)
    if not answer.ok and "Invalid job id" not in answer.error:  # that job had ended already
        raise UnavailableError(f"scancel failed: {answer.error}. Run the command again")


def run_checked(*command: str) -> str:
    """Run a command and return its output.

    Raises:
        UnavailableError: Slurm refused, or did not answer.
    """
    return _checked(_run(*command))


def test_only(script: str) -> CommandResult:
    """Run `sbatch --test-only`: when the batch script could start, or why Slurm refuses it."""
    return _run("sbatch", "--test-only", stdin=script)


@cache
def sbatch_options() -> frozenset[str]:
    """List the long options of this machine's sbatch, without --. Empty if it prints none."""
    texts = [_run("sbatch", word).text for word in ("--help", "--usage")]
    return frozenset(re.findall(r"--([a-z][a-z0-9-]*[a-z0-9])", " ".join(texts)))


def is_partition_up(partition: str | None) -> bool:
    """Whether one of these partitions (None: the default one) starts jobs.

    It is also true if Slurm does not answer.
    """
    chosen = [f"--partition={partition}"] if partition else []
    answer = _run("sinfo", "--noheader", "--format=%P|%a", *chosen)
    rows = read_table(answer.text, (PLAIN, r"[a-z]+")).rows if answer.ok else []
    states = [state for name, state in rows if partition or name.endswith("*")]
    return not states or "up" in states


def lacks_nodes_now(partition: str | None, nodes: int) -> bool:
    """Whether these partitions (None: the default one) have so many nodes, but not in use now.

    Nodes that are down or drained count as not in use. False if Slurm does not answer.
    """
    chosen = [f"--partition={partition}"] if partition else []
    answer = _run("sinfo", "--noheader", "--Node", "--format=%N|%P|%t", *chosen)
    rows = read_table(answer.text, (PLAIN, PLAIN, r"[A-Za-z]\S*")).rows if answer.ok else []
    states = {node: state for node, name, state in rows if partition or name.endswith("*")}
    return sum(map(is_usable, states.values())) < nodes <= len(states)


def threads_per_core(partition: str | None) -> int:
    """The most threads of a core that nodes of these partitions (None: the default one) have.

    Partitions that give whole nodes are left out. 1 if Slurm does not answer.
    """
    chosen = [f"--partition={partition}"] if partition else []
    answer = _run("sinfo", "--noheader", "--format=%P|%Z|%h", *chosen)
    rows = read_table(answer.text, (PLAIN, r"[0-9]+\+?", PLAIN)).rows if answer.ok else []
    counts = [
        parse_count(threads)
        for name, threads, sharing in rows
        if (partition or name.endswith("*")) and not sharing.startswith("EXCLUSIVE")
    ]
    return max((count for count in counts if count), default=1)


@cache
def configuration() -> dict[str, str]:
    """Read `scontrol show config`. Empty if the controller does not answer."""
    answer = _run("scontrol", "show", "config")
    return read_config(answer.text) if answer.ok else {}


def prefetch_site_limits(account: str | None, qos: str | None, partition: str | None) -> None:
    """Fill the caches that a submission needs, for a thread that runs beside the planning."""
    configuration()
    submit_limit(account, qos)
    longest_min(partition)


def cluster_name() -> str | None:
    """Slurm's ClusterName. None if the controller does not answer."""
    return configuration().get("ClusterName")


def own_associations() -> list[str]:
    """Words of `sacctmgr show assoc` that choose this user's on this cluster."""
    name = cluster_name()
    return [f"user={user_name()}", *([f"cluster={name}"] if name else [])]


@cache
def submit_limit(account: str | None, qos: str | None) -> int | None:
    """How many jobs the user may have at a time, where each array element counts as one.

    It is the smallest limit of the association and of the quality of service. None if there is no
    limit, or the accounting does not show one.
    """
    if configuration().get("AccountingStorageType") != SLURMDBD:
        return None
    associations, qualities = _used_limits(account, qos)
    texts = [text for row in (*associations, *qualities) for text in row[1:3]]
    limits = [limit for limit in map(parse_count, texts) if limit is not None]
    return min(limits, default=None)


def _used_limits(account: str | None, qos: str | None) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of the accounting for jobs with this account and QOS. None is the default one."""
    associations, qualities = _limits_of_accounting()
    # sacctmgr prints names in lower case, and sbatch takes them in any case.
    if account:
        associations = [row for row in associations if row[0].lower() == account.lower()]
    else:
        associations = associations[:1]
    default_qos = next((row[3] for row in associations if row[3]), "normal")
    quality = (qos or default_qos).lower()
    return associations, [row for row in qualities if row[0].lower() == quality]


@cache
def _limits_of_accounting() -> tuple[list[list[str]], list[list[str]]]:
    """Rows of (account, limit, limit, default QOS) of this user, and of (QOS, limit, limit, flags).

    Other clusters with the same accounting have limits of their own. Their rows are left out.
    """
    # the import takes 20 ms, which `--help` must not wait for
    from concurrent.futures import ThreadPoolExecutor

    associations = [*own_associations(), "format=Account,MaxSubmitJobs,GrpSubmitJobs,DefaultQOS"]
    qualities = "format=Name,MaxSubmitJobsPerUser,GrpSubmitJobs,Flags"
    with ThreadPoolExecutor(2) as pool:  # each takes a fifth of a second
        first = pool.submit(_rows, 4, "sacctmgr", "show", "assoc", *associations)
        second = pool.submit(_rows, 4, "sacctmgr", "show", "qos", qualities)
        return first.result(), second.result()


@cache
def longest_min(partition: str | None) -> int | None:
    """The longest time limit of these partitions (None: the default one), in minutes.

    None if one of them has no limit, or Slurm does not answer. Many sites accept a job that asks
    for more, and never start it (EnforcePartLimits=NO).
    """
    chosen = [f"--partition={partition}"] if partition else []
    answer = _run("sinfo", "--noheader", "--format=%P|%l", *chosen)
    if not answer.ok:
        return None
    limits = []
    for name, limit in read_table(answer.text, (PLAIN, TIME_LIMIT)).rows:
        if partition or name.endswith("*"):
            limits.append(parse_minutes(limit))
    known = [limit for limit in limits if limit is not None]
    if len(known) < len(limits):  # a partition has no limit
        return None
    return max(known, default=None)


def time_limit_min(
    partition: str | None, account: str | None = None, qos: str | None = None
) -> int | None:
    """The longest time limit of jobs with this partition, account and QOS. None if there is none.

    A QOS with the flag PartitionTimeLimit allows jobs that are longer than the partition's limit.
    """
    longest = longest_min(partition)
    if longest is None or configuration().get("AccountingStorageType") != SLURMDBD:
        return longest
    _, qualities = _used_limits(account, qos)
    is_lifted = any("PartitionTimeLimit" in row[3].split(",") for row in qualities)
    return None if is_lifted else longest


def forget_answers() -> None:
    """Forget what Slurm has answered. A notebook lives longer than these answers hold."""
    known = (sbatch_options, configuration, submit_limit, longest_min, _limits_of_accounting)
    for answer in known:
        answer.cache_clear()


def _rows(fields: int, *command: str) -> list[list[str]]:
    answer = _run(*command, "--noheader", "--parsable2")
    return read_table(answer.text, (PLAIN,) * fields).rows if answer.ok else []


def _checked(answer: CommandResult) -> str:
    if answer.ok:
        return answer.text
    if has_no_cluster(answer.error):
        raise UnavailableError(
            "Slurm's commands are installed, but find no cluster. Use a login node, or set "
            "SLURM_CONF. `furnace devcluster up` starts a Slurm on this machine"
        )
    raise UnavailableError(f"Slurm does not answer: {answer.error}. Try again in a minute")


def _run(*command: str, stdin: str = "") -> CommandResult:
    # Otherwise Slurm cuts long lists of elements, and ends them in dots.
    environment = clean_environment(os.environ) | {"SLURM_BITSTR_LEN": "0"}
    try:
        done = subprocess.run(
            command,
            input=stdin.encode(),
            env=environment,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return CommandResult(False, "", f"{command[0]} took longer than {TIMEOUT_S} s")
    except OSError as error:
        return CommandResult(False, "", f"{command[0]}: {error.strerror}")
    output, messages = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
    error_line = " ".join(messages.split())
    if not error_line:
        error_line = f"{command[0]} ended with exit code {done.returncode}"
    return CommandResult(done.returncode == 0, output, error_line)
