"""Describe the result of a mirror, and mirror to all trackers of a profile."""

import sys
from collections.abc import Sequence
from pathlib import Path

from furnace_hpc.config.cluster import TrackerTarget
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.parsing.text_safety import masked, printable
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.submitted import grid_command, runs_by_table
from furnace_hpc.trackers.mirror import Mirrored, mirror


def describe(target: TrackerTarget, done: Mirrored) -> str:
    """One line for the user."""
    if not done.num_changed:
        return f"{target.to}: nothing new in {counted(done.num_runs, 'run')}"
    text = (
        f"{target.to}: sent {counted(done.num_records, 'record')} of "
        f"{counted(done.num_changed, 'run')}"
    )
    if done.num_replaced:
        text += f"; older records of {counted(done.num_replaced, 'run')} were replaced"
    return f"{text}; see {done.place}"


def mirror_to_all(targets: Sequence[TrackerTarget], folder: GridFolder) -> None:
    """Mirror a grid to several trackers. A failure only prints a warning."""
    for target in targets:
        try:
            print(
                printable(describe(target, mirror(folder, target, reports_of(folder)))), flush=True
            )
        except Exception as error:  # a tracker's library may raise anything
            problem = masked(" ".join(str(error).split()) or type(error).__name__)
            command = grid_command("track", folder, *_options(target))
            text = f"warning: the runs were not sent to {target.to}: {problem}. Repeat: {command}"
            print(printable(text), file=sys.stderr, flush=True)


def reports_of(folder: GridFolder) -> dict[str, str]:
    """Run id -> report of its table, if `furnace aggregate` wrote one here.

    Each `--set` has a table of its own. A run that is in several tables has the report of the
    newest submission.
    """
    found: dict[str, str] = {}
    for name, runs in runs_by_table(folder):
        path = Path("results") / name / "report.html"
        if path.is_file():
            found |= dict.fromkeys(runs, str(path.resolve()))
    return found


def _options(target: TrackerTarget) -> list[str]:
    words = ["--to", target.to]
    if target.at:
        words += ["--at", target.at]
    if target.project:
        words += ["--project", target.project]
    return [*words, *(["--offline"] if target.offline else [])]
