"""The last lines of `aggregate` and of a local `submit`: what the table shows, where to look, what to do next."""

from pathlib import Path

from furnace_hpc.config.parsing.command_line import furnace
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.state import RunState
from furnace_hpc.runs.submitted import command_on, submit_words
from furnace_hpc.tables.output.cells import is_starred, scale_of
from furnace_hpc.tables.output.notes import named
from furnace_hpc.tables.statistics.significance import UNDERTRAINED, p_in_words
from furnace_hpc.tables.table import Ablation, Row

LIVE = (RunState.QUEUED, RunState.RUNNING)


def last_lines(ablation: Ablation, folder: GridFolder, place: Path, files: int) -> list[str]:
    """Verdict, report and next command. `place`: the folder that holds the `files` written."""
    lines = [
        f"verdict: {verdict(ablation)}",
        f"wrote {files} files to {place}; open {place / 'report.html'}",
    ]
    return [*lines, f"next: {command}"] if (command := next_command(ablation, folder)) else lines


def verdict(ablation: Ablation) -> str:
    """Which rows differ from the reference; a table that lacks runs has none yet."""
    if ablation.missing:
        return f"none yet, {len(ablation.missing):,} of {len(ablation.runs):,} runs are missing"
    scale, reference = scale_of(ablation.grid.metric), ablation.grid.reference
    rows = [row for row in ablation.rows if row is not ablation.reference]
    shown = [row for row in rows if is_starred(row.difference, scale)]
    open_ = [row.variant for row in rows if row not in shown]
    parts = [
        f"{how} than {reference}: {named([_differs(ablation, row) for row in found])}"
        for how, wanted in (("better", True), ("worse", False))
        if (found := [row for row in shown if _is_better(ablation, row) is wanted])
    ]
    if open_:
        parts.append(f"no difference shown: {named(open_)}")
    if ablation.stronger_sanity:
        parts.append(
            f"{UNDERTRAINED}: {named(list(ablation.stronger_sanity))} is better than {reference}"
        )
    return "; ".join(parts) or "one row, nothing to compare"


def next_command(ablation: Ablation, folder: GridFolder) -> str:
    """What to type next: submit what is missing, watch what runs, or take a finished run to answers; empty if none."""
    if any(run.status.state in LIVE for run in ablation.missing):
        return command_on("status", folder, "--watch")
    if ablation.missing:
        failed = any(run.status.state is RunState.FAILED for run in ablation.missing)
        return submit_words(
            folder, ablation.grid.settings, *(["--retry", "failed"] if failed else [])
        )
    run = (ablation.reference or ablation.rows[0]).runs[0]
    out = Path("exported") / run.run_id
    return "" if out.exists() else furnace("export", str(run.folder.path), "--out", str(out))


def _is_better(ablation: Ablation, row: Row) -> bool:
    return row.difference is not None and (row.difference.mean > 0) is (
        ablation.grid.direction == "max"
    )


def _differs(ablation: Ablation, row: Row) -> str:
    """`full (+2.0 points, p .014)`."""
    scale, difference = scale_of(ablation.grid.metric), row.difference
    assert difference is not None
    unit = scale.difference_unit.strip(" ()")
    amount = " ".join(filter(None, (scale.show(difference.mean, signed=True), unit)))
    return f"{row.variant} ({amount}, p {p_in_words(difference.holm_p)})"
