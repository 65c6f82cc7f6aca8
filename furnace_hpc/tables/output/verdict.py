"""Verdict, report and next command: the last lines of `furnace aggregate`."""

from pathlib import Path

from furnace_hpc.config.parsing.command_line import furnace
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.state import RunState
from furnace_hpc.runs.submitted import command_on, submit_words
from furnace_hpc.tables.output.cells import UNDERTRAINED, is_starred
from furnace_hpc.tables.statistics.estimates import Difference
from furnace_hpc.tables.statistics.significance import format_p
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.text import list_names

LIVE = (RunState.QUEUED, RunState.RUNNING)


def last_lines(ablation: Ablation, folder: GridFolder, place: Path, files: int) -> list[str]:
    """Verdict, report and next command. `place`: folder with the `files` results."""
    lines = [
        f"verdict: {verdict(ablation)}",
        f"wrote {files} files to {place}; open {place / 'report.html'}",
    ]
    if command := next_command(ablation, folder):
        lines.append(f"next: {command}")
    return lines


def verdict(ablation: Ablation) -> str:
    """The rows that differ from the reference. There is no verdict while runs are missing."""
    if ablation.missing:
        return f"none yet, {len(ablation.missing):,} of {len(ablation.runs):,} runs are missing"
    reference = ablation.grid.reference
    better, worse, not_shown = [], [], []
    for row in ablation.compared:
        if row.difference is None or not is_starred(row.difference, ablation.metric.scale):
            not_shown.append(row.variant)
            continue
        text = f"{row.variant} ({_describe(ablation, row.difference)})"
        if ablation.metric.is_better(row.difference.mean, 0.0):
            better.append(text)
        else:
            worse.append(text)
    parts = {
        f"better than {reference}": better,
        f"worse than {reference}": worse,
        "no difference shown": not_shown,
    }
    sentences = [f"{title}: {list_names(names)}" for title, names in parts.items() if names]
    if ablation.stronger_sanity:
        stronger = list_names(ablation.stronger_sanity)
        sentences.append(f"{UNDERTRAINED}: {stronger} is better than {reference}")
    return "; ".join(sentences) or "one row, nothing to compare"


def next_command(ablation: Ablation, folder: GridFolder) -> str:
    """The next command: watch active runs, submit missing runs, or export a finished run.

    Empty if none.
    """
    states = {run.status.state for run in ablation.missing}
    if states & set(LIVE):
        return command_on("status", folder, "--watch")
    if RunState.FAILED in states:
        return submit_words(folder, ablation.grid.settings, "--retry", "failed")
    if states:
        return submit_words(folder, ablation.grid.settings)
    run = (ablation.reference or ablation.rows[0]).runs[0]
    out = Path("exported") / run.run_id
    if out.exists():
        return ""
    return furnace("export", str(run.folder.path), "--out", str(out))


def _describe(ablation: Ablation, difference: Difference) -> str:
    """`+2.0 points, p .014`."""
    scale = ablation.metric.scale
    amount = f"{scale.show(difference.mean, signed=True)} {scale.difference_unit.strip(' ()')}"
    return f"{amount.rstrip()}, p {format_p(difference.holm_p)}"
