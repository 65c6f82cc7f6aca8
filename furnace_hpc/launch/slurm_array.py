"""Slurm arrays and follow-up jobs, built and submitted by submitit; nothing more is asked of submitit.

A line in the journal goes before each sbatch and another after it, so that what is cut off in between is found by the
job's name and never submitted twice.
"""

import io
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.launch.arrays import DEFAULT_MAX_ARRAY_SIZE, Array, Limits, next_wave
from furnace_hpc.launch.batch_script import (
    array_parameters,
    check_path,
    follow_up_parameters,
    rank_command,
)
from furnace_hpc.launch.follow_up import read_profile
from furnace_hpc.launch.plan import Plan, Shape
from furnace_hpc.launch.rank_main import run_task
from furnace_hpc.launch.submission import withdraw, write_submission
from furnace_hpc.monitor.job_cache import Evidence
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import Submission, job_name, submissions
from furnace_hpc.slurm import client, die_with_parent
from furnace_hpc.slurm.environment import environment_of_jobs
from furnace_hpc.slurm.parsing import submitted_id, whole
from furnace_hpc.slurm.sbatch_errors import hint, is_away, is_doubtful, short

SBATCH_TIMEOUT_S = 90
LIMIT_REACHED = "you have as many jobs as the site allows: wait for some to end"
LOOK_AGAIN_S = (1, 2, 4, 8)  # after a lost answer: the controller may still be busy with the job

Shapes = Mapping[Shape, Sequence[int]]


def submit_plan(plan: Plan, live_jobs: int) -> list[str]:
    """Submit what the site takes now of the plan's arrays, and the job that sends the rest; return what was done.

    The grid's lock is held by the caller.

    Raises:
        ConfigError: sbatch refused (its own words are in the message), or the path cannot stand in a script.
        UnavailableError: the controller is away, or its answer was lost.
    """
    check_path(plan.folder.path.resolve())
    limits = site_limits(plan.profile, live_jobs)
    for shape in plan.shapes:
        _check_time(shape, plan.profile)
    # one shape is refused or taken whole; of several, one could be refused half-way
    if len(plan.shapes) > 1:
        for shape, rows in plan.shapes.items():
            _test(plan, shape, list(rows))
    if not next_wave(plan.shapes, limits):
        raise ConfigError(f"{LIMIT_REACHED}, and submit again")
    submission = prepare(plan)
    try:
        return submit_wave(
            submission, plan.profile, plan.folder.path.name, plan.shapes, limits, plan.exclude
        )
    except UnavailableError:
        raise  # nobody knows: the journal must stay
    except ConfigError:
        if not any(sent.outcome == "submitted" for sent in submission.sent()):
            withdraw(plan, submission)
        raise


def prepare(plan: Plan) -> Submission:
    """Write everything that the batch scripts read, and submit nothing."""
    submission = write_submission(plan)
    DelayedSubmission(run_task, str(submission.path)).dump(submission.path / "payload.pkl")
    return submission


def submit_wave(
    submission: Submission,
    profile: ClusterProfile,
    grid: str,
    shapes: Shapes,
    limits: Limits,
    exclude: tuple[str, ...] = (),
) -> list[str]:
    """Submit the next wave of these rows and its follow-up job; return what was done, a line each."""
    arrays = next_wave(shapes, limits)
    if not arrays:
        raise UnavailableError(LIMIT_REACHED)
    code = submission.code
    ids, words, cluster = [], [], client.cluster_name()
    for array in arrays:
        name = job_name(grid, "array")
        submission.note(
            "intent", name=name, kind="array", base=array.base, rows=array.rows, cluster=cluster
        )
        command = f"{rank_command(profile, code)} -u -m submitit.core._submit {shlex.quote(str(submission.path))}"
        parameters = array_parameters(profile, array, name, submission.path, code, exclude)
        ids.append(_sbatch(submission, name, command, parameters, len(array.rows)))
        words.append(f"submitted array {ids[-1]}: {len(array.rows):,} runs of {array.shape}")
    left = sum(map(len, shapes.values())) - sum(len(array.rows) for array in arrays)
    if not profile.follow_up:
        return (
            [*words, f"{left:,} runs are left: submit again when these have ended"]
            if left
            else words
        )
    return [*words, _follow_up(submission, profile, grid, ids, left)]


def send_missing_follow_ups(folder: GridFolder, evidence: Evidence) -> list[str]:
    """A follow-up job for every submission that was cut off between its array and that; what was done, a line each."""
    words = []
    for submission in submissions(folder):
        sent = [one for one in submission.sent() if one.outcome == "submitted"]
        followed = max((n for n, one in enumerate(sent) if one.kind == "follow-up"), default=-1)
        ids = [
            one.job_id
            for one in sent[followed + 1 :]
            if any(i in evidence.queued for i in one.elements.values())
        ]
        if ids and (profile := read_profile(submission)).follow_up:
            words.append(_follow_up(submission, profile, folder.path.name, ids, 0))
    return words


def _follow_up(
    submission: Submission, profile: ClusterProfile, grid: str, after: list[str], left: int
) -> str:
    """Submit the job that comes after these; what was done, or why not: the runs go on without it."""
    name, place = job_name(grid, "follow-up"), shlex.quote(str(submission.path))
    submission.note(
        "intent", name=name, kind="follow-up", base=0, rows=[], cluster=client.cluster_name()
    )
    command = f"{shlex.quote(profile.python or sys.executable)} -m furnace_hpc.follow_up {place}"
    parameters = follow_up_parameters(profile, name, after, submission.path, submission.code)
    rest = f"sends the {left:,} runs left, " if left else ""
    try:
        job_id = _sbatch(submission, name, command, parameters)
    except UnavailableError:
        raise
    except ConfigError as error:
        return f"no follow-up job ({error}): submit again when all have ended, which {rest}retries what was interrupted"
    return f"submitted job {job_id}, which {rest}retries what was interrupted, and makes the table"


def batch_text(plan: Plan, array: Array, submission: Path) -> str:
    """The batch script of one array, as `submit_plan` would submit it. Works where there is no Slurm."""
    check_path(submission)
    code = plan.folder.code.resolve() / plan.snapshot
    command = f"{rank_command(plan.profile, code)} -u -m submitit.core._submit {shlex.quote(str(submission))}"
    every = array_parameters(
        plan.profile, array, f"furnace-{plan.grid.name}-TOKEN", submission, code, plan.exclude
    )
    text: str = _make_sbatch_string(
        command=command, folder=submission, map_count=len(array.rows), **every
    )
    return text


def site_limits(profile: ClusterProfile, live_jobs: int) -> Limits:
    """What the site takes now: the profile's word, else Slurm's own."""
    said = whole(client.configuration().get("MaxArraySize", ""))
    size = profile.max_array_size or (DEFAULT_MAX_ARRAY_SIZE if said is None else said)
    most = profile.max_submit_jobs or client.submit_limit(profile.account, profile.qos)
    return Limits(
        size, None if most is None else most - live_jobs - (1 if profile.follow_up else 0)
    )


class _Executor(SlurmExecutor):  # type: ignore[misc]  # the library is not typed
    """Submitit's executor, with an sbatch that neither hangs nor outlives this process, and may print a banner."""

    @staticmethod
    def _get_job_id_from_submission_command(string: bytes | str) -> str:
        text = string.decode("utf-8", "replace") if isinstance(string, bytes) else string
        if (job_id := submitted_id(text)) is None:
            raise FailedSubmissionError(f"sbatch printed no job id: {text}")
        return job_id

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        bound = [sys.executable, "-I", "-S", str(die_with_parent.__file__), str(SBATCH_TIMEOUT_S)]
        return [*bound, "sbatch", str(submission_file_path)]


def _sbatch(
    submission: Submission, name: str, command: str, parameters: dict[str, Any], count: int = 0
) -> str:
    """One sbatch; the id of its job."""
    executor = _Executor(submission.path, max_num_timeout=1000)
    executor.update_parameters(**parameters)
    if count:
        executor.parameters["map_count"] = count
    try:
        with environment_of_jobs(), redirect_stderr(io.StringIO()):
            job_id = str(executor._submit_command(command).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        job_id = _after_failure(submission, name, short(" ".join(str(error).split())))
    submission.note("submitted", name=name, job_id=job_id)
    return job_id


def _after_failure(submission: Submission, name: str, words: str) -> str:
    """The id of a job that was submitted although sbatch failed.

    Raises:
        ConfigError: it was refused.
        UnavailableError: it never reached the controller, or nobody can tell now.
    """
    if is_away(words) and not is_doubtful(words):
        submission.note("absent", name=name)
        raise UnavailableError(
            f"Slurm's controller is away ({words}): job {name} was not submitted; give the command again, "
            f"and only what is missing is submitted"
        )
    if not is_doubtful(words):
        submission.note("refused", name=name, error=words)
        raise ConfigError(f"sbatch refused job {name}: {words}: {hint(words)}")
    for pause_s in LOOK_AGAIN_S:
        time.sleep(pause_s)
        try:
            if job_id := client.find_job(name):
                return job_id
        except UnavailableError:
            continue
    raise UnavailableError(
        f"sbatch failed ({words or 'without a word'}), and Slurm does not list job {name} now: give the command again "
        f"in a minute; it asks for that job first, and submits only what is missing"
    )


def _check_time(shape: Shape, profile: ClusterProfile) -> None:
    """Raise ConfigError for a time limit with which a job would wait for ever."""
    partition = shape.partition or profile.partition
    longest = client.longest_min(partition)
    if longest and shape.timeout_min > longest:
        raise ConfigError(
            f"resources.timeout_min {shape.timeout_min} is more than partition {partition or 'of jobs without one'} "
            f"allows ({longest}): such a job waits for ever; give at most that, runs are requeued where they stopped"
        )


def _test(plan: Plan, shape: Shape, rows: list[int]) -> None:
    """Raise ConfigError when Slurm would refuse a job of this shape."""
    said = test_text(plan, Array(shape, rows[0], (rows[0],)))
    if not said.ok and not is_away(said.error) and not is_doubtful(said.error):
        words = short(said.error)
        raise ConfigError(
            f"sbatch would refuse {len(rows):,} runs of {shape}: {words}: {hint(words)}"
        )


def test_text(plan: Plan, array: Array) -> client.CommandResult:
    """What `sbatch --test-only` says of an array."""
    with environment_of_jobs():
        return client.test_only(batch_text(plan, array, plan.folder.submissions.resolve() / "0"))
