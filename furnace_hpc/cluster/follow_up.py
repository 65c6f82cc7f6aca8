"""What comes after a wave: which rows of a submission are left to send, or to send again."""

from collections import Counter
from collections.abc import Iterable

from furnace_hpc.cluster.journal import Submission
from furnace_hpc.cluster.observe import CANCELLED, Observer
from furnace_hpc.cluster.planned import Shape
from furnace_hpc.cluster.profile import ClusterProfile
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.state import RunState, close_open_attempt


def left_over(submission: Submission, folder: GridFolder, retries: int, observer: Observer) -> dict[Shape, list[int]]:
    """Rows that were never sent, and interrupted ones that may be sent again; by shape.

    What failed by itself, was cancelled, or is in a later submission, is none of this one's business.
    """
    times = Counter(row for sent in submission.sent() if sent.outcome == "submitted" for row in sent.rows)
    shapes: dict[Shape, list[int]] = {}
    cancelled = submission.cancelled()
    for row in submission.rows:
        place = observer.places.get(row["run_id"])
        if not row["to_do"] or row["run_id"] in cancelled or (place and place.submission != submission.path):
            continue
        status = observer.now(folder.run(row["run_id"]))
        if status.attempt >= row["facts"]["max_attempts"]:
            continue
        sent = times[row["row"]]
        interrupted = status.state is RunState.INTERRUPTED and CANCELLED not in status.reason
        waits = not sent and status.state in (RunState.NEW, RunState.QUEUED)
        if waits or (interrupted and sent <= retries):
            shapes.setdefault(Shape(*row["shape"]), []).append(row["row"])
    return shapes


def close_attempts(submission: Submission, rows: Iterable[int], folder: GridFolder, observer: Observer) -> None:
    """Write down how the attempts of these rows ended that could not do so themselves: Slurm knows."""
    for row in rows:
        run = folder.run(submission.rows[row]["run_id"])
        close_open_attempt(run, observer.now(run))


def read_profile(submission: Submission) -> ClusterProfile:
    """The profile that the submission was made with."""
    return ClusterProfile.model_validate_json((submission.path / "profile.json").read_text(encoding="utf-8"))
