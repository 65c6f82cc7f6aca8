"""A table as CSV, Markdown, LaTeX and on the terminal. The same runs give the same bytes."""

import csv
import io
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from furnace_hpc.spec.printable import printable
from furnace_hpc.tables.captions import caption
from furnace_hpc.tables.cells import Cells, all_cells, changes_in_words, headings, lettered, word
from furnace_hpc.tables.evidence import short_caption
from furnace_hpc.tables.notes import describe
from furnace_hpc.tables.table import Ablation, Row, Run

if TYPE_CHECKING:
    from rich.console import Group

# Fields of RunResult that runs.csv shows beside the metrics.
RESULT_COLUMNS = (
    *("steps", "selected_step", "train_s", "wall_s", "samples_per_s", "peak_memory_gib", "attempts"),
    *("num_parameters", "world_size", "num_threads", "device", "precision", "zero_stage"),
    *("commit", "code_hash", "data_fingerprint", "parameters_sha256"),
)
WORDS = ("variant", "changes")  # columns of words; all others are numbers
TERMINAL_COLUMNS = ("variant", "n", "metric", "difference", "holm_p", "train_s", "hours")
TERMINAL_ROWS = 200  # more is not read from a terminal
LATEX_COLUMNS = ("variant", "n", "metric", "difference", "holm_p", "sign_flip_p", "train_s")  # what a text column holds
LATEX_WORDS = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "|": r"\textbar{}",
        "\u2013": "--",
        "->": r"$\to$",
        "--": "-{}-",
    },
}


def to_csv(ablation: Ablation) -> str:
    """One line a row, numbers as measured (no percent) and in full precision; empty where there is none."""
    notes: dict[str, list[str]] = {row.variant: [] for row in ablation.rows}
    for note in ablation.notes:
        for variant in note.variants:
            notes[variant].append(note.text)
    return _csv([_csv_row(ablation, row, notes[row.variant]) for row in ablation.rows])


def to_runs_csv(ablation: Ablation) -> str:
    """One line a run; empty where there is nothing."""
    metrics = sorted({name for run in ablation.runs if run.result for name in run.result.metrics})
    references = {change.key: change.reference for row in ablation.rows for change in row.changes}
    return _csv([_csv_run(run, row, metrics, references) for row in ablation.rows for run in row.runs])


def to_markdown(ablation: Ablation) -> str:
    """A Markdown table with its caption and notes."""
    titles = headings(ablation)
    lines = [f"**{_markdown(ablation.grid.description)}**\n"] if ablation.grid.description else []
    lines.append(f"| {' | '.join(_markdown(title) for title in titles.values())} |")
    lines.append(f"| {' | '.join(':--' if name in WORDS else '--:' for name in titles)} |")
    for cells in all_cells(ablation):
        texts = _texts(cells, titles, _markdown, bold="**{}**", mark="<sup>{}</sup>")
        lines.append(f"| {' | '.join(texts)} |")
    lines += ["", " ".join(_markdown(sentence) for sentence in caption(ablation, titles)), ""]
    lines += [
        f"- {f'<sup>{letter}</sup> ' if letter else ''}{_markdown(text)}" for letter, text, _ in lettered(ablation)
    ]
    return "\n".join(lines).rstrip() + "\n"


def to_latex(ablation: Ablation) -> str:
    """A LaTeX table with its caption and notes; needs the package booktabs."""
    titles = headings(ablation, LATEX_COLUMNS)
    body = [
        " & ".join(_texts(cells, titles, _latex, bold=r"\textbf{{{}}}", mark=r"\textsuperscript{{{}}}")) + r" \\"
        for cells in all_cells(ablation)
    ]
    rows = [(row.variant, changes_in_words(row)) for row in ablation.rows if "changes" not in titles]
    below = [*caption(ablation, titles), *(f"{variant}: {changes}." for variant, changes in rows if changes)]
    notes = [rf"\textsuperscript{{{letter}}} " * bool(letter) + _latex(text) for letter, text, _ in lettered(ablation)]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}[t]",
            r"\centering\footnotesize\setlength{\tabcolsep}{2.5pt}",
            rf"\caption{{{_latex(f'{ablation.grid.description or ablation.grid.name} {short_caption(ablation)}')}}}",
            rf"\label{{tab:{ablation.grid.name}}}",
            rf"\begin{{tabular}}{{{''.join('l' if name in WORDS else 'r' for name in titles)}}}",
            r"\toprule",
            " & ".join(_latex(title) for title in titles.values()) + r" \\",
            *[r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\par\smallskip"],
            r"\begin{minipage}{\linewidth}\footnotesize\raggedright",
            *[_latex(sentence) for sentence in below],
            *[rf"\par {note}" for note in notes],
            *[r"\end{minipage}", r"\end{table}", ""],
        ]
    )


def to_terminal(ablation: Ablation) -> "Group":
    """The table for a terminal, with its notes."""
    from rich.box import SIMPLE
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    titles = headings(ablation, TERMINAL_COLUMNS)
    table = Table(title=Text(ablation.grid.description or ablation.grid.name), title_justify="left", box=SIMPLE)
    for name, title in titles.items():
        table.add_column(Text(title), justify="left" if name in WORDS else "right")
    for cells in all_cells(ablation)[:TERMINAL_ROWS]:
        texts = _texts(cells, titles, str, bold="{}", mark=" ({})")
        table.add_row(*[Text(text) for text in texts], style="bold" if cells.best else "")
    lines = caption(ablation, titles)
    if (more := len(ablation.rows) - TERMINAL_ROWS) > 0:
        lines.insert(0, f"{more:,} more rows are in the files.")
    lines += [f"({letter}) {text}" if letter else text for letter, text, _ in lettered(ablation)]
    return Group(table, *[Text(printable(line)) for line in lines])


def _texts(cells: Cells, titles: Iterable[str], escape: Callable[[str], str], bold: str, mark: str) -> list[str]:
    """The cells under `titles`, escaped: the best mean bold, the variant with its notes' letters."""
    texts = {name: escape(str(value)) for name, value in cells._asdict().items()}
    mean = bold.format(texts["mean"]) if cells.best else texts["mean"]
    texts["metric"] = f"{mean} {texts['spread']}".rstrip()
    texts["variant"] += mark.format(cells.marks) if cells.marks else ""
    return [texts[title] for title in titles]


def _csv_row(ablation: Ablation, row: Row, notes: list[str]) -> dict[str, Any]:
    low, high = row.interval or (None, None)
    difference = row.difference
    difference_low, difference_high = (difference and difference.interval) or (None, None)
    return {
        "variant": row.variant,
        "changes": changes_in_words(row),
        "metric": ablation.grid.metric,
        "n": row.n,
        "n_expected": row.n_expected,
        "mean": row.mean,
        "deviation": row.deviation,
        **({"n_packs": len(row.units), "packs_deviation": row.packs_deviation} if ablation.packs else {}),
        "mean_low": low,
        "mean_high": high,
        "difference": difference and difference.mean,
        "difference_low": difference_low,
        "difference_high": difference_high,
        "n_pairs": difference and difference.n,
        "t_p": difference and difference.t_p,
        "holm_p": difference and difference.holm_p,
        "sign_flip_p": difference and difference.sign_flip_p,
        "effect": difference and difference.effect,
        "more_seeds": difference and difference.more_seeds,
        "reference_undertrained_against": " ".join(ablation.stronger_sanity),
        **vars(row.costs),
        "missing": "; ".join(describe(run) for run in row.missing),
        "notes": "; ".join(notes),
    }


def _csv_run(run: Run, row: Row, metrics: list[str], references: dict[str, Any]) -> dict[str, Any]:
    result = vars(run.result) if run.result else {}
    own = references | {change.key: change.value for change in row.changes}
    line: dict[str, Any] = {
        "run_id": run.run_id,
        "variant": run.spec.variant,
        **({"pack": run.draw.pack} if run.draw.pack else {}),
        "seed": run.seed,
        "state": run.status.state,
        "reason": run.status.reason,
    }
    line |= {name: result.get("metrics", {}).get(name) for name in metrics}
    line |= {f"config.{key}": word(value) for key, value in own.items()}
    line |= {name: result.get(name) for name in RESULT_COLUMNS}
    line["attempts"] = run.status.attempt
    line |= vars(run.spent)
    return line


def _csv(lines: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*<`])", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    """`text` for LaTeX; a letter that pdflatex lacks becomes a question mark."""
    return _NOT_PLAIN.sub(_latex_part, " ".join(text.split()))


_NOT_PLAIN = re.compile(r"->|--|(?<![\w.])-\d|[^-A-Za-z0-9 .,:;()\[\]+*/='!?@]")


def _latex_part(found: re.Match[str]) -> str:
    part = found.group()
    if part in LATEX_WORDS:
        return LATEX_WORDS[part]
    if len(part) == 2:  # a negative number's sign and first digit
        return f"$-${part[1]}"
    return part if part.isprintable() and ord(part) < 0x180 else "?"
