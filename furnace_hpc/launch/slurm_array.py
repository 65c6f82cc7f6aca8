"""Submit Slurm arrays and follow-up jobs with submitit.

The journal gets a line before each sbatch, and another one after it. If a submission is cut off in
between, the job is found by its name and never submitted twice.
"""

import shlex
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.config.parsing.plural import counted, is_are
from furnace_hpc.config.parsing.sbatch_flags import Flag
from furnace_hpc.launch.arrays import DEFAULT_MAX_ARRAY_SIZE, Array, Limits, next_wave
from furnace_hpc.launch.batch_script import (
    array_parameters,
    check_path,
    follow_up_parameters,
    rank_command,
    shared_node_command,
)
from furnace_hpc.launch.container import host_python
from furnace_hpc.launch.follow_up import read_profile
from furnace_hpc.launch.planning.plan import Plan, Shape
from furnace_hpc.launch.python_archive import link_archive
from furnace_hpc.launch.rank_main import run_task
from furnace_hpc.launch.shape_checks import (
    check_flag_names,
    find_refused,
    note_dropped_variables,
    note_shared_cores,
    try_shapes,
)
from furnace_hpc.launch.submission import Draft, draft, read_scope, withdraw, write_submission
from furnace_hpc.monitor.job_cache import JobCache
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import Submission, job_name, submissions
from furnace_hpc.slurm import client, die_with_parent, test_only
from furnace_hpc.slurm.environment import environment_of_jobs
from furnace_hpc.slurm.parsing import largest_array, submitted_id
from furnace_hpc.slurm.sbatch_errors import hint, is_away, is_doubtful, short

SBATCH_TIMEOUT_S = 90
LIMIT_REACHED = "you have as many jobs as the site allows: wait for some to end"
LOOKUP_PAUSES_S = (1, 2, 4, 8)  # after a lost answer: the controller may still work on the job

Shapes = Mapping[Shape, Sequence[int]]


def submit_plan(plan: Plan, live_jobs: int) -> list[str]:
    """Submit the first wave of a plan and its follow-up job. Return a line for each job.

    The caller holds the grid's lock.

    Raises:
        ConfigError: sbatch refused a job (with its message), or a script cannot contain the path.
        UnavailableError: the controller is away, or its answer was lost.
    """
    # the import takes 20 ms, which `--help` must not wait for
    from concurrent.futures import ThreadPoolExecutor

    check_path(plan.folder.path.resolve())
    check_flag_names(plan.shapes)
    note_dropped_variables()
    note_shared_cores(plan.shapes, plan.profile)
    with ThreadPoolExecutor(1) as aside:  # the test takes as long as an sbatch
        answers = aside.submit(try_plan, plan)
        limits = site_limits(plan.profile, live_jobs)
        if not next_wave(plan.shapes, limits):
            raise ConfigError(f"{LIMIT_REACHED}, and submit again")
        # A refused plan must not be declared, or replace the grid's file. So only a draft is made.
        content = draft(plan)
        try:
            _check_accepted(plan, answers.result())
        except BaseException:
            content.code.discard()
            raise
    submission = prepare(plan, content)
    grid = plan.folder.path.name
    try:
        return submit_wave(submission, plan.profile, grid, plan.shapes, limits, plan.exclude)
    except UnavailableError:
        raise  # the job may exist: the journal must stay
    except ConfigError:
        if not any(call.outcome == "submitted" for call in submission.sbatch_calls()):
            withdraw(plan, submission)
        raise


def prepare(plan: Plan, content: Draft | None = None) -> Submission:
    """Write everything that batch scripts read, and submit nothing.

    The arguments are those of `write_submission`.
    """
    submission = write_submission(plan, content)
    DelayedSubmission(run_task, str(submission.path)).dump(submission.path / "payload.pkl")
    try:
        link_archive(plan.profile, plan.folder.path.parent, submission.path)
    except ConfigError:
        withdraw(plan, submission)
        raise
    return submission


def submit_wave(
    submission: Submission,
    profile: ClusterProfile,
    grid: str,
    shapes: Shapes,
    limits: Limits,
    exclude: tuple[str, ...] = (),
) -> list[str]:
    """Submit the next wave of these rows and its follow-up job. Return a line for each job."""
    arrays = next_wave(shapes, limits)
    if not arrays:
        raise UnavailableError(LIMIT_REACHED)
    ids, lines = [], []
    for array in arrays:
        ids.append(_submit_array(submission, profile, grid, array, exclude))
        lines.append(f"submitted array {ids[-1]}: {array.shape.describe(len(array.rows))}")
    left = sum(map(len, shapes.values())) - sum(len(array.rows) for array in arrays)
    has_more = read_scope(submission) is not None
    if profile.follow_up:
        lines.append(_submit_follow_up(submission, profile, grid, ids, left))
    elif left:
        lines.append(
            f"{counted(left, 'run')} {is_are(left)} left: submit again when these jobs have ended"
        )
    elif has_more:
        lines.append("submit again when these jobs have ended: other runs follow them")
    return lines


def submit_missing_follow_ups(folder: GridFolder, job_cache: JobCache) -> list[str]:
    """Submit follow-up jobs for submissions that were cut off before theirs. Return a line each."""
    lines = []
    for submission in submissions(folder):
        ids = _arrays_without_follow_up(submission, job_cache)
        if ids and (profile := read_profile(submission)).follow_up:
            lines.append(_submit_follow_up(submission, profile, folder.path.name, ids, 0))
    return lines


def batch_text(plan: Plan, array: Array, submission: Path) -> str:
    """Return the batch script of one array, as `submit_plan` submits it. It needs no Slurm."""
    check_path(submission)
    code = plan.folder.code.resolve() / plan.snapshot
    name = f"furnace-{plan.grid.name}-TOKEN"
    text: str = _make_sbatch_string(
        command=_command(plan.profile, code, submission, name, array.shape),
        folder=submission,
        map_count=len(array.indices),
        **array_parameters(plan.profile, array, name, submission, code, plan.exclude),
    )
    return text


def try_plan(plan: Plan) -> dict[Shape, client.CommandResult]:
    """Return the result of `sbatch --test-only` for each shape of a plan."""
    place = plan.folder.submissions.resolve() / "0"
    return try_shapes(plan.shapes, lambda array: test_only.ask(batch_text(plan, array, place)))


def site_limits(profile: ClusterProfile, live_jobs: int) -> Limits:
    """Return what the site accepts now, from the profile, else from Slurm.

    Raises:
        ConfigError: the site has no arrays.
    """
    size = array_size(profile)
    most = profile.max_submit_jobs or client.submit_limit(profile.account, profile.qos)
    if most is None:
        return Limits(size)
    return Limits(size, most - live_jobs - int(profile.follow_up))


def array_size(profile: ClusterProfile) -> int:
    """Return the largest size of an array, from the profile, else from Slurm, else the default.

    Raises:
        ConfigError: the site has no arrays.
    """
    size = profile.max_array_size or largest_array(client.configuration())
    if size is None:
        return DEFAULT_MAX_ARRAY_SIZE
    if size < 1:
        raise ConfigError(
            "this Slurm has no job arrays (MaxArraySize = 0), which grids need: ask the "
            "administrators, or start single runs with `submit --prepare` and slurm/train.sbatch"
        )
    return size


def _check_accepted(plan: Plan, answers: Mapping[Shape, client.CommandResult]) -> None:
    """Raise ConfigError if a job of the plan would wait forever, or be refused.

    sbatch accepts or refuses an array as a whole. With several arrays, the second could be refused
    when the first is already submitted. So all are tested before.
    """
    if problems := find_refused(plan.shapes, answers, plan.profile):
        raise ConfigError("\n".join(problems))


def _submit_array(
    submission: Submission,
    profile: ClusterProfile,
    grid: str,
    array: Array,
    exclude: tuple[str, ...],
) -> str:
    """Submit one array and return its job id."""
    name = job_name(grid, "array")
    _note_intent(submission, name, "array", array.base, array.rows, array.shape.runs_per_node)
    command = _command(profile, submission.code, submission.path, name, array.shape)
    parameters = array_parameters(profile, array, name, submission.path, submission.code, exclude)
    return _sbatch(submission, name, command, parameters, len(array.indices))


def _submit_follow_up(
    submission: Submission, profile: ClusterProfile, grid: str, after: list[str], left: int
) -> str:
    """Submit the job that follows these. If sbatch refuses it, the runs continue without it."""
    name = job_name(grid, "follow-up")
    _note_intent(submission, name, "follow-up", 0, [])
    python = shlex.quote(host_python(profile))
    command = f"{python} -m furnace_hpc.follow_up {shlex.quote(str(submission.path))}"
    parameters = follow_up_parameters(
        profile, name, after, submission.path, submission.code, _shared_flags(submission)
    )
    rest = f"submits the {counted(left, 'run')} left, " if left else ""
    if read_scope(submission):
        rest += "submits the runs that follow these, "
    try:
        job_id = _sbatch(submission, name, command, parameters)
    except UnavailableError:
        raise
    except ConfigError as error:
        return (
            f"no follow-up job ({error}): submit again when all jobs have ended, which {rest}"
            f"retries interrupted runs"
        )
    return f"submitted job {job_id}, which {rest}retries interrupted runs, and makes the table"


def _shared_flags(submission: Submission) -> set[Flag]:
    """Return the further sbatch flags that all jobs of a submission have."""
    shapes = {Shape.read(row.shape) for row in submission.rows if row.to_do}
    return set.intersection(*(set(shape.sbatch) for shape in shapes)) if shapes else set()


def _arrays_without_follow_up(submission: Submission, job_cache: JobCache) -> list[str]:
    """Return ids of arrays in the queue that were submitted after the newest follow-up job."""
    arrays: list[str] = []
    for call in submission.sbatch_calls():
        if call.outcome == "submitted" and call.kind == "follow-up":
            arrays = []
        elif call.outcome == "submitted" and not job_cache.queued.keys().isdisjoint(
            call.elements.values()
        ):
            arrays.append(call.job_id)
    return arrays


def _note_intent(
    submission: Submission,
    name: str,
    kind: str,
    base: int,
    rows: Sequence[int],
    runs_per_node: int = 1,
) -> None:
    facts = {"name": name, "kind": kind, "base": base, "rows": rows}
    facts["cluster"] = client.cluster_name()
    if runs_per_node > 1:
        facts["runs_per_node"] = runs_per_node
    submission.note("intent", **facts)


def _command(profile: ClusterProfile, code: Path, submission: Path, name: str, shape: Shape) -> str:
    if shape.runs_per_node > 1:
        return shared_node_command(profile, submission, code, name, shape)
    python = rank_command(profile, code)
    return f"{python} -u -m submitit.core._submit {shlex.quote(str(submission))}"


class _Executor(SlurmExecutor):  # type: ignore[misc]  # the library is not typed
    """submitit's executor with an sbatch that has a time limit and dies with this process.

    It also accepts an sbatch that prints a banner.
    """

    @staticmethod
    def _get_job_id_from_submission_command(string: bytes | str) -> str:
        text = string.decode("utf-8", "replace") if isinstance(string, bytes) else string
        if (job_id := submitted_id(text)) is None:
            raise FailedSubmissionError(f"sbatch printed no job id: {text}")
        return job_id

    def _submit_command(self, command: str) -> Any:
        path = Path(self.folder) / f".submission_file_{uuid.uuid4().hex}.sh"
        path.write_text(self._make_submission_file_text(command, ""))
        done = die_with_parent.run(["sbatch", str(path)], SBATCH_TIMEOUT_S)
        if done.code:
            raise FailedJobError(done.error)
        job_id = self._get_job_id_from_submission_command(done.output)
        job = self.job_class(self.folder, job_id, list(range(self._num_tasks())))
        job.paths.move_temporary_file(path, "submission_file", keep_as_symlink=True)
        return job


def _sbatch(
    submission: Submission, name: str, command: str, parameters: dict[str, Any], count: int = 0
) -> str:
    """Run sbatch once and return the job id. `count` is the number of array elements."""
    executor = _Executor(submission.path, max_num_timeout=1000)
    executor.update_parameters(**parameters)
    if count:
        executor.parameters["map_count"] = count
    try:
        with environment_of_jobs():
            job_id = str(executor._submit_command(command).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        job_id = _after_failure(submission, name, short(" ".join(str(error).split())))
    submission.note("submitted", name=name, job_id=job_id)
    return job_id


def _after_failure(submission: Submission, name: str, words: str) -> str:
    """Return the id of a job that was submitted although sbatch failed with these words.

    Raises:
        ConfigError: sbatch refused the job.
        UnavailableError: the job never reached the controller, or that cannot be found out now.
    """
    if not is_doubtful(words):
        if is_away(words):
            submission.note("absent", name=name)
            raise UnavailableError(
                f"Slurm's controller is away ({words}): job {name} was not submitted. Repeat the "
                f"command; it submits only what is missing"
            )
        submission.note("refused", name=name, error=words)
        raise ConfigError(f"sbatch refused job {name}: {words}: {hint(words)}")
    for pause_s in LOOKUP_PAUSES_S:
        time.sleep(pause_s)
        try:
            if job_id := client.find_job(name):
                return job_id
        except UnavailableError:
            continue
    raise UnavailableError(
        f"sbatch failed ({words or 'without a message'}), and Slurm does not list job {name} now: "
        f"repeat the command in a minute. It looks for that job first, and submits only what is "
        f"missing"
    )
