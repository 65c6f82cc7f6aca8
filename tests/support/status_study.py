"""Submissions, answers of Slurm and the status that follows from them."""

import json
import re
from collections.abc import Iterable

from login_study import specs

from furnace_hpc.launch.planning.plan import Shape
from furnace_hpc.monitor.job_cache import JobCache
from furnace_hpc.monitor.run_status import StatusResolver
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.state import RunStatus
from furnace_hpc.slurm.client import Job

RUNS = [spec.run_id for spec in specs()]


SMALL, LARGE = Shape(1, 1, 60, None), Shape(2, 1, 60, None)


def submit(
    folder: GridFolder, sent: dict[str, Iterable[int]], to_do: Iterable[int] = range(4), runs=RUNS
):
    """A submission with its jobs: job id -> rows, where a follow-up job has none."""
    made, wanted = Submission(folder.new_submission().resolve()), set(to_do)
    shapes = {row: LARGE if row == 3 else SMALL for row in range(len(runs))}
    rows = [
        {
            "row": i,
            "run_id": run,
            "to_do": i in wanted,
            "shape": shapes[i],
            "facts": {"max_attempts": 20},
        }
        for i, run in enumerate(runs)
    ]
    (made.path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for job_id, its_rows in sent.items():
        send(made, job_id, its_rows)
    return made


def send(made: Submission, job_id: str, rows: Iterable[int]) -> None:
    kind = "array" if rows else "follow-up"
    made.note("intent", name=job_id, kind=kind, base=0, rows=list(rows))
    made.note("submitted", name=job_id, job_id=job_id)


def answer(**words: str) -> JobCache:
    """A squeue that lists these jobs: `_5_0="PENDING Resources"`."""
    split = {
        name[1:]: re.fullmatch(r"(CANCELLED by \d+|\S+) ?(.*)", word)
        for name, word in words.items()
    }
    return JobCache(
        {job_id: Job(job_id, word[1], word[2]) for job_id, word in split.items() if word}
    )


def see(folder: GridFolder, known: JobCache, row: int = 0) -> RunStatus:
    return StatusResolver(folder, known)(folder.run(RUNS[row]))
