"""A table as CSV, as Markdown and for the terminal. The same runs give the same bytes.

LaTeX is in latex.py.
"""

import csv
import io
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from furnace_hpc.tables.large.once import once_per_table
from furnace_hpc.tables.large.paired import pair_statistics_of
from furnace_hpc.tables.large.rendered import rendered_rows, signature
from furnace_hpc.tables.notes import describe
from furnace_hpc.tables.output.captions import caption, main_sentences
from furnace_hpc.tables.output.cells import (
    FURTHER,
    Cells,
    FurtherCell,
    all_cells,
    format_changes,
    headings,
    lettered,
)
from furnace_hpc.tables.output.effects import effects_markdown, effects_terminal
from furnace_hpc.tables.output.escape import csv_cell, markdown, one_line
from furnace_hpc.tables.statistics.estimates import Difference
from furnace_hpc.tables.statistics.interactions import Omnibus
from furnace_hpc.tables.statistics.robust import interquartile_mean
from furnace_hpc.tables.statistics.units import by_pack
from furnace_hpc.tables.table import Ablation, Row, Run
from furnace_hpc.tables.text import format_value
from furnace_hpc.tables.tuning.csv_lines import curve_lines, tuning_lines

if TYPE_CHECKING:
    from rich.console import Group

# Fields of RunResult that runs.csv has beside the metrics.
RESULT_COLUMNS = (
    *("steps", "stopped_early", "selected_step", "train_s", "wall_s"),
    *("samples_per_s", "peak_memory_gib", "peak_reserved_gib", "attempts"),
    *("model_tflop_s", "mfu", "data_wait_s", "energy_j", "micro_batch_size"),
    *("num_parameters", "trainable_parameters", "world_size", "num_threads"),
    *("device", "precision", "zero_stage"),
    *("commit", "code_hash", "data_fingerprint", "parameters_sha256"),
)
WORDS = ("variant", "changes", "verdict", "tuned")  # columns of text; all others are numbers
TERMINAL_COLUMNS = (
    *("variant", "n", "metric", "difference", "verdict", "tuned", "train_s", "hours"),
    "tuning_hours",
)
HOW_TO_READ = "How each number is computed: table.md and report.html, under How to read this table."
TERMINAL_ROWS = 200  # a longer table is read from the files


@once_per_table
def to_csv(ablation: Ablation) -> str:
    """One line per row. Numbers have full precision and are not percentages.

    Missing values are empty.
    """
    return _csv(table_lines(ablation))


def table_lines(ablation: Ablation) -> list[dict[str, Any]]:
    """Column -> value of each row. A missing value is None or an empty text."""
    notes: dict[str, list[str]] = {row.variant: [] for row in ablation.rows}
    for note in ablation.notes:
        for variant in note.variants:
            notes[variant].append(note.text)
    return [_csv_row(ablation, row, notes[row.variant]) for row in ablation.rows]


def to_runs_csv(ablation: Ablation) -> str:
    """One line per run. Missing values are empty."""
    rows = [row for row in ablation.rows if row.runs]
    if not rows:
        return ""
    metrics, references = _columns_of_runs(ablation)
    whole = signature("runs.csv", metrics, references)
    rendered = rendered_rows(ablation)

    def text_of(row: Row) -> str:
        lines = _csv_runs(row, metrics, references)
        return _csv_lines(lines[0], lines)

    head = _csv_head(_csv_runs(rows[0], metrics, references)[0])
    texts = [rendered.text(whole, row, ablation.records, partial(text_of, row)) for row in rows]
    return head + "".join(texts)


def _columns_of_runs(ablation: Ablation) -> tuple[list[str], dict[str, Any]]:
    """The metrics of all runs, and dotted key -> the reference's value of each key that changes."""
    metrics = sorted({name for run in ablation.runs if run.result for name in run.result.metrics})
    references = {change.key: change.reference for row in ablation.rows for change in row.changes}
    return metrics, references


def runs_lines(ablation: Ablation) -> list[dict[str, Any]]:
    """Column -> value of each run. A missing value is None or an empty text."""
    metrics, references = _columns_of_runs(ablation)
    return [line for row in ablation.rows for line in _csv_runs(row, metrics, references)]


def to_effects_csv(ablation: Ablation) -> str:
    """One line per effect of a factor, and per test of an interaction. Empty without any."""
    if ablation.effects is None:
        return ""
    return _csv(
        [
            {
                "name": effect.name,
                "kind": "interaction" if effect.is_interaction else "main",
                "metric": ablation.metric.name,
                **_csv_difference(effect.difference),
                "verdict": effect.verdict,
                "gaps": ablation.effects.gaps,
                **dict.fromkeys(("f", "f_degrees", "f_degrees_error", "f_p")),
            }
            for effect in ablation.effects.effects
        ]
        + [_csv_test(ablation, test) for test in ablation.effects.tests]
    )


def _csv_test(ablation: Ablation, test: Omnibus) -> dict[str, Any]:
    """The line of the test of a whole interaction, which has no difference."""
    assert ablation.effects
    of_factors, of_error = test.degrees if test.f is not None else (None, None)
    line = dict.fromkeys(_csv_difference(None)) | {"n_pairs": test.n, "holm_p": test.holm_p}
    return {
        "name": test.name,
        "kind": "any interaction",
        "metric": ablation.metric.name,
        **line,
        "verdict": None,
        "gaps": ablation.effects.gaps,
        "f": test.f,
        "f_degrees": of_factors,
        "f_degrees_error": of_error,
        "f_p": test.p,
    }


def to_ranks_csv(ablation: Ablation) -> str:
    """One line per method: its scores and ranks on the data sets. Empty without several."""
    ranks = ablation.ranks
    if ranks is None:
        return ""
    lines = []
    for method, mean_rank in ranks.mean_ranks.items():
        of_sets = list(zip(ranks.data_sets, ranks.scores[method], ranks.ranks[method], strict=True))
        lines.append(
            {
                "method": method,
                "metric": ablation.metric.name,
                "mean_rank": mean_rank,
                "n_data_sets": len(ranks.data_sets),
                "friedman_p": ranks.friedman_p,
                "critical_difference": ranks.critical_difference,
                **{f"score.{name}": score for name, score, _ in of_sets},
                **{f"rank.{name}": rank for name, _, rank in of_sets},
            }
        )
    return _csv(lines)


@once_per_table
def to_markdown(ablation: Ablation) -> str:
    """A Markdown table with its caption and notes."""
    titles, lines = headings(ablation), []
    if ablation.grid.description:
        lines.append(f"**{markdown(ablation.grid.description)}**\n")
    lines.append(_markdown_row(markdown(title) for title in titles.values()))
    alignment = dict.fromkeys(titles, "--:") | dict.fromkeys(WORDS, ":--")
    lines.append(_markdown_row(alignment[name] for name in titles))
    for cells in all_cells(ablation):
        texts = cell_texts(cells, titles, markdown, "**{}**", "<sup>{}</sup>")
        for number, name in enumerate(titles):
            if name in cells.ranges:
                texts[number] += f" ({markdown(cells.ranges[name])})"
        lines.append(_markdown_row(texts))
    lines += ["", " ".join(map(markdown, main_sentences(ablation))), ""]
    lines += ["<details><summary>How to read this table</summary>", ""]
    sentences = caption(ablation, titles)
    if any(titles.keys() & cells.ranges.keys() for cells in all_cells(ablation)):
        sentences.append("Beside a median: lowest and highest run.")
    lines += [" ".join(map(markdown, sentences)), "", "</details>", ""]
    for letter, note in lettered(ablation):
        mark = f"<sup>{letter}</sup> " * bool(letter)
        lines.append(f"- {mark}{markdown(note.text)}")
    lines += effects_markdown(ablation)
    return "\n".join(lines).rstrip() + "\n"


def to_terminal(ablation: Ablation, width: int = 100) -> "Group":
    """The table for a terminal of `width` characters, with its notes."""
    from rich.console import Group
    from rich.text import Text

    from furnace_hpc.tables.output.terminal import blocks

    shown = all_cells(ablation)[:TERMINAL_ROWS]
    titles = {name: one_line(title) for name, title in headings(ablation, TERMINAL_COLUMNS).items()}
    lines_of_cells = [
        cell_texts(cells, titles, one_line, bold="{}", mark=" ({})") for cells in shown
    ]
    rows = [dict(zip(titles, line, strict=True)) for line in lines_of_cells]
    tables = blocks(titles, rows, [cells.best for cells in shown], WORDS, width)
    lines = [*main_sentences(ablation), HOW_TO_READ]
    if (more := len(ablation.rows) - TERMINAL_ROWS) > 0:
        lines.insert(0, f"{more:,} more rows are in the files.")
    for letter, note in lettered(ablation):
        lines.append(f"({letter}) " * bool(letter) + note.text)
    title = Text(one_line(ablation.grid.description) or ablation.grid.name)
    texts = [Text(one_line(line)) for line in lines]
    return Group(title, *tables, *texts, *effects_terminal(ablation, width))


def cell_texts(
    cells: Cells, titles: Iterable[str], escape: Callable[[str], str], bold: str, mark: str
) -> list[str]:
    """The cells under `titles`, escaped.

    The best mean is bold, and the variant has the letters of its notes.
    """
    texts = []
    for title in titles:
        if title == "metric" or title.startswith(FURTHER):
            text = _mean_text(cells.of_metric(title), escape, bold)
        else:
            text = escape(str(getattr(cells, title)))
        if title == "variant" and cells.marks:
            text += mark.format(cells.marks)
        texts.append(text)
    return texts


def _mean_text(cell: FurtherCell, escape: Callable[[str], str], bold: str) -> str:
    """Mean and spread of a metric."""
    mean = escape(cell.mean)
    if cell.best:
        mean = bold.format(mean)
    return f"{mean} {escape(cell.spread)}".rstrip()


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _csv_row(ablation: Ablation, row: Row, notes: list[str]) -> dict[str, Any]:
    """Column -> value of a row of table.csv."""
    low, high = row.interval or (None, None)
    line = {
        "variant": row.variant,
        "changes": format_changes(row),
        "metric": ablation.metric.name,
        "n": row.n,
        "n_expected": row.n_expected,
        "mean": row.mean,
        "deviation": row.deviation,
    }
    if ablation.packs:
        line |= {"n_packs": len(row.units), "packs_deviation": row.packs_deviation}
    return {
        **line,
        "mean_low": low,
        "mean_high": high,
        **_csv_difference(row.difference),
        **_csv_pairs(ablation, row),
        **_csv_further(ablation, row),
        "verdict": row.verdict,
        "reference_undertrained_against": " ".join(ablation.stronger_sanity),
        **(row.costs.columns() if ablation.source is None else {}),
        **_csv_tuning(ablation, row),
        "missing": "; ".join(describe(run) for run in row.missing),
        "notes": "; ".join(notes),
    }


def _csv_further(ablation: Ablation, row: Row) -> dict[str, Any]:
    """Mean, deviation and difference in each further metric. Intervals are not corrected."""
    line: dict[str, Any] = {}
    for table in ablation.others:
        other = table.row_of[row.variant]
        low, high = (other.difference and other.difference.interval) or (None, None)
        values = {
            "n": other.n,
            "mean": other.mean,
            "deviation": other.deviation,
            "difference": other.difference and other.difference.mean,
            "difference_low": low,
            "difference_high": high,
        }
        line |= {f"{table.metric.name}.{name}": value for name, value in values.items()}
    return line


def _csv_tuning(ablation: Ablation, row: Row) -> dict[str, Any]:
    if ablation.tuning is None:
        return {}
    tuned, hours = ablation.tuned_cells(row)
    return {"tuned": tuned, "tuning_hours": hours}


def to_tuning_csv(ablation: Ablation) -> str:
    """One line per trial. Empty if no row has chosen values yet."""
    return _csv(tuning_lines(ablation))


def to_curve_csv(ablation: Ablation) -> str:
    """One line per row and number of trials. Empty if no row has chosen values yet."""
    return _csv(curve_lines(ablation))


def _csv_difference(difference: Difference | None) -> dict[str, Any]:
    low, high = (difference and difference.interval) or (None, None)
    lowest, highest = (difference and difference.simultaneous) or (None, None)
    return {
        "difference": difference and difference.mean,
        "difference_low": low,
        "difference_high": high,
        "simultaneous_low": lowest,
        "simultaneous_high": highest,
        "n_pairs": difference and difference.n,
        "t_p": difference and difference.t_p,
        "holm_p": difference and difference.holm_p,
        "sign_flip_p": difference and difference.sign_flip_p,
        "effect": difference and difference.effect,
        "equivalence_p": difference and difference.equivalence_p,
    }


def _csv_pairs(ablation: Ablation, row: Row) -> dict[str, Any]:
    """The statistics of the pairs, and the interquartile mean if `columns` has it."""
    found = pair_statistics_of(ablation, row)
    g_low, g_high = (found and found.hedges_g_interval) or (None, None)
    low, high = (found and found.improvement_interval) or (None, None)
    line = {
        "hedges_g": found and found.hedges_g,
        "hedges_g_low": g_low,
        "hedges_g_high": g_high,
        "improvement": found and found.improvement,
        "improvement_low": low,
        "improvement_high": high,
        "correlation": found and found.correlation,
    }
    if "iqm" in ablation.grid.columns:
        center, interval = interquartile_mean(by_pack(row.values)) or (None, None)
        iqm_low, iqm_high = interval or (None, None)
        line |= {"iqm": center, "iqm_low": iqm_low, "iqm_high": iqm_high}
    return line


def _csv_runs(row: Row, metrics: list[str], references: dict[str, Any]) -> list[dict[str, Any]]:
    """Column -> value of each line of a row in runs.csv."""
    values = references | {change.key: change.value for change in row.changes}
    config = {f"config.{key}": format_value(value) for key, value in values.items()}
    return [_csv_run(run, metrics, config) for run in row.runs]


def _csv_run(run: Run, metrics: list[str], config: dict[str, str]) -> dict[str, Any]:
    """Column -> value of a line of runs.csv."""
    result: dict[str, Any] = vars(run.result) if run.result else {}
    line: dict[str, Any] = {"run_id": run.run_id, "variant": run.spec.variant}
    if run.draw.pack:
        line["pack"] = run.draw.pack
    line |= {"seed": run.seed, "state": run.status.state, "reason": run.status.reason}
    line |= {name: result.get("metrics", {}).get(name) for name in metrics if name not in line}
    if run.origin:
        line["origin"] = run.origin
    line |= config
    if run.origin:
        return line
    line |= {name: result.get(name) for name in RESULT_COLUMNS}
    line["attempts"] = run.status.attempt
    line |= vars(run.spent)
    return line


def _csv(lines: list[dict[str, Any]]) -> str:
    if not lines:
        return ""
    return _csv_head(lines[0]) + _csv_lines(lines[0], lines)


def _csv_head(names: Iterable[str]) -> str:
    return _csv_text([[csv_cell(name) for name in names]])


def _csv_lines(names: Iterable[str], lines: list[dict[str, Any]]) -> str:
    return _csv_text([csv_cell(line[name]) for name in names] for line in lines)


def _csv_text(lines: Iterable[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
