"""Find the job that is responsible for each run of a grid, from the journals of its submissions."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from furnace_hpc.host.json_lines import read_json
from furnace_hpc.runs.file_cache import cached_by_stat
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import Submission, submissions
from furnace_hpc.runs.manual_starts import manually_started


@dataclass(frozen=True)
class JobAssignment:
    """The job of a run in the newest submission that starts the run."""

    submission: Path  # `.` if the user's own batch script started the run
    job_id: str  # of the run's array element; empty if the run waits for a later wave
    follow_up: str  # job that submits later waves and retries; empty if there is none
    submitted_unix_s: float = 0.0
    cancelled: bool = False
    resubmitted: bool = False  # the follow-up job retries the run if it is interrupted
    shares_node: bool = False  # the job has other runs, which must not end with this one

    def is_of_array(self, job_id: str | None) -> bool:
        """Whether the job belongs to the same array, on a shared node.

        Such a job may have started the run before the run's own job.
        """
        array = self.job_id.partition("_")[0]
        return self.shares_node and (job_id or "").partition("_")[0] == array


def job_assignments(folder: GridFolder) -> dict[str, JobAssignment]:
    """Map run ids to jobs. Later submissions replace earlier ones, and later manual starts both."""
    assignments: dict[str, JobAssignment] = {}
    all_ = submissions(folder)
    for submission in all_:
        assignments |= _of_later_waves(submission)
        assignments |= _of_arrays(submission)
    for run_id, attempt in manually_started(folder, all_).items():
        known = assignments.get(run_id)
        if known is None or attempt.start_unix_s > known.submitted_unix_s:
            job_id = attempt.job_id or ""
            shares_node = attempt.runs_per_node > 1
            assignments[run_id] = JobAssignment(
                Path(), job_id, "", attempt.start_unix_s, shares_node=shares_node
            )
    return assignments


def _of_later_waves(submission: Submission) -> dict[str, JobAssignment]:
    """Assign all runs of the submission to its follow-up job. `_of_arrays` replaces some."""
    follow_up = _follow_up(submission)
    if not follow_up:
        return {}
    cancelled = submission.cancelled()
    run_ids = [row.run_id for row in submission.rows if row.to_do]
    return {
        run_id: JobAssignment(submission.path, "", follow_up, cancelled=run_id in cancelled)
        for run_id in run_ids
    }


def _of_arrays(submission: Submission) -> dict[str, JobAssignment]:
    found: dict[str, JobAssignment] = {}
    submitted = [call for call in submission.sbatch_calls() if call.outcome == "submitted"]
    times_submitted = Counter(row for call in submitted for row in call.rows)
    follow_up, cancelled = _follow_up(submission), submission.cancelled()
    retries = _retries(submission.path)
    for array in submitted:
        if array.kind != "array":
            continue
        for row, job_id in array.elements.items():
            run_id = submission.rows[row].run_id
            found[run_id] = JobAssignment(
                submission.path,
                job_id,
                follow_up,
                array.unix_s,
                cancelled=run_id in cancelled,
                resubmitted=times_submitted[row] <= retries and run_id not in cancelled,
                shares_node=array.runs_per_node > 1,
            )
    return found


def _follow_up(submission: Submission) -> str:
    """Id of the submission's newest follow-up job. Empty if there is none."""
    ids = (call.job_id for call in reversed(submission.sbatch_calls()) if call.kind == "follow-up")
    return next(filter(None, ids), "")


@cached_by_stat(lambda submission: [submission / "profile.json"])
def _retries(submission: Path) -> int:
    try:
        return int(read_json(submission / "profile.json")["retries"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0
