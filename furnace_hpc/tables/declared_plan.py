"""What was declared before the first run, and what changed after results could be seen."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.grids.trials import NOT_CHOSEN
from furnace_hpc.config.parsing.plural import is_are
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.records.declaration import (
    Declared,
    DeclaredPlan,
    changes,
    describe_results,
    join,
    numbers,
    plan_of,
    read_declared,
)
from furnace_hpc.tables.table import Ablation, Note, PlanHistory
from furnace_hpc.tables.text import count

# value of the grid's key `verdicts` -> what has verdicts
VERDICTS = {
    "both": "{rows}, and effects of factors if there are any",
    "rows": "{rows}",
    "effects": "effects of factors",
}
MAX_CHANGES = 5  # in the note


def read_history(grid: Grid, runs: Sequence[RunSpec], folder: GridFolder) -> PlanHistory | None:
    """What was declared for a grid's table, and what changed. None if no plan was recorded.

    Args:
        grid: the grid with its settings.
        runs: all its runs.
        folder: folder of the grid's runs.
    """
    try:
        entries = read_declared(folder, grid)
    except ConfigError as error:
        return PlanHistory((), problem=f"no declared plan: {error}")
    if not entries:
        return None
    # Not those of runs, which have chosen values, and the runs that they start from.
    configs = {row.name: row.config for row in expand_rows(grid)}
    data = {
        spec.config.data.name: spec.data_fingerprint
        for spec in runs
        if spec.data_fingerprint != NOT_CHOSEN
    }
    newest = entries[-1].plan
    declared_data = {name: data[name] for name in data if name in newest.data}
    # Only a submission can change the code of runs, or adopt runs.
    now = plan_of(grid, configs, declared_data, newest.code, newest.adopted)
    removed = () if grid.by else tuple(_removed_rows(entries, now))
    return PlanHistory(entries, tuple(changes(newest, now)), removed)


def with_declared_plan(ablation: Ablation, history: PlanHistory | None) -> Ablation:
    """The table, of the grid or a view of it, with its history and a note on late changes."""
    if history is None:
        return ablation
    if history.problem:
        return replace(ablation, notes=(*ablation.notes, Note(history.problem)))
    ablation = replace(ablation, declared=history)
    return replace(ablation, notes=(*ablation.notes, *plan_note(ablation)))


def _removed_rows(entries: Sequence[Declared], now: DeclaredPlan) -> Iterator[str]:
    """Rows that were compared, and removed when runs had results. A renamed row is not removed."""
    left = _compared(now, now)
    seen = _compared(entries[-1].plan, now)
    for before, after in pairwise(entries):
        if after.runs_with_results:
            seen = _compared(before.plan, now) | seen
    for name, config in seen.items():
        if name not in left and config not in left.values():
            yield name


def _compared(plan: DeclaredPlan, now: DeclaredPlan) -> dict[str, str]:
    """Row -> hash of its config, without rows that only give weights to others."""
    sources = plan.sources
    if sources is None:  # an older Furnace did not record them
        sources = now.sources or ()
    return {name: config for name, config in plan.rows.items() if name not in sources}


def plan_note(ablation: Ablation) -> Iterator[Note]:
    """The declaration and what changed after it, if runs had results by then."""
    history = ablation.declared
    if history is None:
        return
    first, late = history.entries[0], list(_late(history.entries))
    if not late and not history.not_submitted and not first.runs_with_results:
        return
    noun = "seed" if len(first.plan.seeds) == 1 else "seeds"
    start = f"declared on {first.day} with {noun} {numbers(first.plan.seeds)} and metric "
    start += first.plan.metric
    if first.runs_with_results:
        start += f", {describe_results(first.runs_with_results)}"
    sentences = [start, *late[:MAX_CHANGES]]
    if len(late) > MAX_CHANGES:
        more = len(late) - MAX_CHANGES
        sentences.append(f"{count(more, 'later change')} {is_are(more)} in the report")
    if history.not_submitted:
        sentences.append(f"Changed in the grid file, not submitted: {join(history.not_submitted)}")
    what = "Intervals do" if ablation.why_no_verdict else "Intervals and verdicts do"
    if history.removed and not ablation.why_no_verdict:
        removed = count(len(history.removed), "removed row")
        sentences.append(f"The correction counts {removed}: {join(history.removed)}")
        what = "Apart from that, intervals and verdicts do"
    looks = len(late) + bool(first.runs_with_results)
    if looks:
        sentences.append(f"{what} not account for {'this look' if looks == 1 else 'these looks'}")
    yield Note(". ".join(sentences))


def plan_lines(ablation: Ablation) -> list[str]:
    """The whole history for the report: one line per fact. Empty for runs of another tool."""
    if ablation.source is not None:
        return []
    history = ablation.declared
    if history is None:
        return ["No plan was recorded before the runs of this table started."]
    first = history.entries[0]
    plan, packs, sesoi = first.plan, "", "none"
    if plan.packs:
        packs = f" Packs: {', '.join(plan.packs)}."
    if plan.sesoi is not None:
        sesoi = f"{plan.sesoi:g}"
    rows = count(plan.family, "row")
    better = "higher" if plan.direction == "max" else "lower"
    lines = [
        f"Declared on {first.day}, {describe_results(first.runs_with_results)}.",
        f"Rows: {', '.join(plan.rows)}. Reference: {plan.reference}.",
        f"Seeds: {numbers(plan.seeds)}.{packs}",
        f"Metric: {plan.metric}, {better} is better. Smallest effect of interest (sesoi): {sesoi}.",
        f"Tests: simultaneous intervals, level {plan.level:.0%}, {plan.correction}'s correction "
        f"for all comparisons with a verdict: {VERDICTS[plan.verdicts].format(rows=rows)}.",
    ]
    if plan.code:
        lines.append(f"Code: {plan.code}.")
    if plan.adopted:
        lines.append(f"Adopted, finished under another name: {join(plan.adopted)}.")
    if plan.tune:
        lines.append(f"Each row tuned with {plan.tune}.")
    changed = [text for pair in pairwise(history.entries) for text in _sentence(*pair)]
    if history.not_submitted:
        changed.append(f"Changed in the grid file, not submitted: {join(history.not_submitted)}")
    return lines + [f"{text}." for text in changed or ["Nothing was changed since"]]


def _late(entries: Sequence[Declared]) -> Iterator[str]:
    """The changes that were made when runs had results."""
    for before, after in pairwise(entries):
        if after.runs_with_results:
            yield from _sentence(before, after)


def _sentence(before: Declared, after: Declared) -> Iterator[str]:
    """One sentence on a submission that changed the plan."""
    found = changes(before.plan, after.plan)
    if found:
        text = f"{join(found)} on {after.day}, {describe_results(after.runs_with_results)}"
        yield text[0].upper() + text[1:]
