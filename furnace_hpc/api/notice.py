"""The notification that a grid's runs have ended: counts, table, and a text for chat programs.

A follow-up job that cannot continue sends another one, with the reason.
"""

import math
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import Grid, read_grid, results_name
from furnace_hpc.config.parsing.text_safety import masked, printable, short
from furnace_hpc.host import gpu_check
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.notices import outbox
from furnace_hpc.runs.submitted import resubmit_command

if TYPE_CHECKING:
    from furnace_hpc.tables.table import Ablation, Row

MAX_TEXT = 1500  # characters; chat programs cut longer ones
MAX_REASON = 500


def notify(grid: Grid, folder: GridFolder, submission: Path | None = None) -> None:
    """Send the notification of a submission whose runs have ended, if its profile has `notify`.

    A failure is one printed warning.

    Args:
        grid: with the settings of the submission.
        folder: of the grid.
        submission: folder of the submission. None: the newest, if it was for the queue on this
            machine. If it was for Slurm, its runs may still wait, and its follow-up job sends it.
    """
    for newest in folder.all_submissions()[-1:]:
        if submission is None and outbox.is_local(newest):
            submission = newest
    if submission is not None:
        _send(submission, lambda path: make_notice(grid, folder, path), outbox.NOTICE)


def notify_stuck(folder: GridFolder, submission: Path, reason: str) -> None:
    """Send the notification that a follow-up job cannot continue, if the profile has `notify`.

    A submission has one. A failure is one printed warning.

    Args:
        folder: of the grid.
        submission: folder of the submission.
        reason: why, for the user.
    """
    _send(submission, lambda path: make_stuck_notice(folder, path, reason), outbox.STUCK)


def _send(submission: Path, make: Callable[[Path], dict[str, Any]], name: str) -> None:
    if not outbox.webhook_of(submission):
        return
    try:
        outbox.put(submission, make(submission), name)
        problem = outbox.send(submission, name=name)
    except Exception as error:  # whatever it is, the runs and the table are complete
        problem = f"{type(error).__name__}: {masked(str(error))}"
    if problem:
        print(
            f"WARNING: the notification could not be sent: {printable(problem)}. "
            f"`furnace status` tries it again",
            flush=True,
        )


def make_notice(grid: Grid, folder: GridFolder, submission: Path) -> dict[str, Any]:
    """Return what is sent: a JSON object without NaN."""
    report = (Path("results") / results_name(grid) / "report.html").resolve()
    notice: dict[str, Any] = {
        **_facts(grid, folder, submission),
        "event": "grid_ended",
        "metric": grid.metric,
        "reference": grid.reference,
        "table": [],
        "verdict": "",
        "reason": gpu_check.stop_reason(str(submission)),
        "report": "",
    }
    if report.exists():
        notice["report"] = str(report)
    try:
        notice |= _of_table(grid, folder)
    except ConfigError as error:  # such as no result at all
        notice["verdict"] = f"no table: {masked(str(error))}"
    stop = f"Some runs were {notice['reason']}." if notice["reason"] else ""
    parts = [f"has ended: {_counts(notice)}.", stop, notice["verdict"]]
    if notice["report"]:
        parts.append(f"Report: {notice['host']}:{notice['report']}")
    return notice | {"text": _text(notice, parts)}


def make_stuck_notice(folder: GridFolder, submission: Path, reason: str) -> dict[str, Any]:
    """Return what is sent if a follow-up job cannot continue."""
    grid = read_grid(submission / "grid.yaml")
    notice = _facts(grid, folder, submission)
    notice |= {
        "id": f"{notice['id']}-stuck",
        "event": "grid_stuck",
        "reason": short(printable(masked(" ".join(reason.split()))), MAX_REASON),
        "command": resubmit_command(folder, grid.settings),
    }
    parts = [
        f"cannot continue: {notice['reason']}.",
        f"Runs: {_counts(notice)}.",
        f"Running jobs continue. When they have ended: {notice['command']}",
    ]
    return notice | {"text": _text(notice, parts)}


def _facts(grid: Grid, folder: GridFolder, submission: Path) -> dict[str, Any]:
    """Return the part that all notifications have."""
    from furnace_hpc.monitor.grid_status import overview

    states = Counter(line.status.state.value for line in overview(folder)[0])
    return {
        "id": f"{folder.path.name}-{submission.name}-{int(submission.stat().st_mtime)}",
        "grid": grid.name,
        "settings": {key: str(value) for key, value in grid.settings.items()},
        "runs": dict(states),
        "host": socket.gethostname(),
    }


def _of_table(grid: Grid, folder: GridFolder) -> dict[str, Any]:
    from furnace_hpc.api.grid_table import make_table
    from furnace_hpc.tables.output.verdict import verdict
    from furnace_hpc.tables.view import View

    ablation = make_table(grid, folder, View())
    return {
        "metric": ablation.metric.name,
        "table": [_row(ablation, row) for row in ablation.rows],
        "verdict": masked(printable(verdict(ablation))),
    }


def _row(ablation: "Ablation", row: "Row") -> dict[str, Any]:
    low, high = row.interval or (None, None)
    difference = row.difference
    shown = (difference.shown if difference else None) or (None, None)
    return {
        "row": row.variant,
        "mean": _number(row.mean),
        "low": _number(low),
        "high": _number(high),
        "n": row.n,
        "n_expected": row.n_expected,
        "difference": _number(difference.mean if difference else None),
        "difference_low": _number(shown[0]),
        "difference_high": _number(shown[1]),
        "verdict": row.verdict.value if row.verdict else None,
    }


def _number(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def _counts(notice: dict[str, Any]) -> str:
    return ", ".join(f"{count} {state}" for state, count in notice["runs"].items())


def _text(notice: dict[str, Any], parts: list[str]) -> str:
    """One paragraph, with the characters escaped that Slack and Mattermost interpret."""
    settings = ", ".join(f"{key}={value}" for key, value in notice["settings"].items())
    name = f"{notice['grid']} with {settings}" if settings else notice["grid"]
    whole = "  ".join([f"Furnace: grid {name} {parts[0]}", *filter(None, parts[1:])])
    text = short(printable(masked(whole)), MAX_TEXT)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
