"""What comes after a wave: which rows of a submission are left to send, or to send again."""

from collections import Counter

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.host import gpu_check, lifecycle
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.launch.plan import Shape
from furnace_hpc.monitor.run_status import CANCELLED, StatusResolver
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.state import RunState, RunStatus, close_open_attempt
from furnace_hpc.runs.trust import check_trusted


def remaining_rows(
    submission: Submission, folder: GridFolder, retries: int, observer: StatusResolver
) -> dict[Shape, list[int]]:
    """Rows that were never sent, and interrupted ones that may be sent again; by shape.

    What failed by itself, was cancelled, or is in a later submission, is none of this one's business; nothing is left
    where a run has found that its GPUs cannot be used.
    """
    if gpu_check.stopped_by(str(submission.path)):
        return {}
    times = Counter(
        row for sent in submission.sent() if sent.outcome == "submitted" for row in sent.rows
    )
    shapes: dict[Shape, list[int]] = {}
    cancelled = submission.cancelled()
    for row in submission.rows:
        place = observer.places.get(row["run_id"])
        if (
            not row["to_do"]
            or row["run_id"] in cancelled
            or (place and place.submission != submission.path)
        ):
            continue
        run = folder.run(row["run_id"])
        status, sent = observer.now(run), times[row["row"]]
        waits = not sent and status.state in (RunState.NEW, RunState.QUEUED)
        comes_back = sent <= retries and _comes_back(status)
        if (waits or comes_back) and not lifecycle.exhausted_budget(str(run.path), row["facts"]):
            shapes.setdefault(Shape(*row["shape"]), []).append(row["row"])
    return shapes


def close_attempts(submission: Submission, folder: GridFolder, observer: StatusResolver) -> None:
    """Write down how the attempts ended that could not do so themselves, or did not know why: Slurm does."""
    for row in submission.rows:
        run, place = folder.run(row["run_id"]), observer.places.get(row["run_id"])
        if place and place.submission == submission.path and place.job_id:
            status = observer.now(run)
            if status.state in (RunState.INTERRUPTED, RunState.FAILED):
                close_open_attempt(run, status)


def _comes_back(status: RunStatus) -> bool:
    """Interrupted by no fault or wish; or failed for lack of a budget, of which this submission may have more."""
    interrupted = status.state is RunState.INTERRUPTED or (
        status.state is RunState.FAILED and bool(status.used_up)
    )
    return interrupted and CANCELLED not in status.reason


def read_profile(submission: Submission) -> ClusterProfile:
    """The profile that the submission was made with: its Python and its lines of setup will be executed.

    Raises:
        ConfigError: others could have changed it.
    """
    check_trusted(submission.path / "profile.json", submission.path.parent.parent.parent)
    return ClusterProfile.model_validate_json(read_regular(submission.path / "profile.json"))
