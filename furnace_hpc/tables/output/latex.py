r"""A table as LaTeX, for `\input` in a paper. The same runs give the same bytes."""

import math
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from furnace_hpc.config.grids.grid import results_name
from furnace_hpc.tables.large.once import once_per_table
from furnace_hpc.tables.output.captions import caption, main_sentences
from furnace_hpc.tables.output.cells import (
    FURTHER,
    UNDERTRAINED,
    Cells,
    all_cells,
    format_changes,
    headings,
    lettered,
)
from furnace_hpc.tables.output.effects import effects_latex
from furnace_hpc.tables.output.escape import one_line
from furnace_hpc.tables.output.latex_letters import ACCENTS, WIDE, Letters, is_wide, letters_of
from furnace_hpc.tables.output.render import WORDS, cell_texts
from furnace_hpc.tables.statistics.verdicts import Verdict
from furnace_hpc.tables.table import Ablation, Row

# columns that fit into a column of a two-column paper
COLUMNS = ("variant", "metric", "difference")
MAX_ROWS = 40  # of a table on one page
MAX_LINES = 48  # of a table on one page, with its caption and notes
# characters in a line of notes, about, and of a caption, whose letters and lines are larger
LINE, CAPTION_LINE = 55, 32
COLUMN_PT = 219.0  # width of a column of the ACL template; those of IEEE and NeurIPS are wider
# widths of letters in points, about, of \footnotesize in a paper with letters of 11 points
WIDTHS = (("il.,:;|'[]()!jtfI ", 3.0), ("mwMWQO%@&\u00b1", 7.6), ("ABCDEFGHKLNPRSTUVXYZ", 6.6))
WIDTH, BETWEEN = 4.7, 5.0  # of other letters, and between two columns
ESCAPES = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "|": r"\textbar{}"},
    **{"\u2013": "--", "->": r"$\to$", "--": "-{}-"},
}
UNIT_BELOW = r"\\("
BOLD, MARKS = r"\textbf{{{}}}", r"\textsuperscript{{{}}}"
SMALL = r"\footnotesize\setlength{\tabcolsep}{2.5pt}\emergencystretch=2em"


@dataclass(frozen=True)
class Layout:
    """How a table fits on the page."""

    columns: str  # argument of the environment
    is_narrow: bool = True  # whether it fits into a column of a two-column paper
    wraps: bool = False  # whether names of rows are broken into several lines
    stacks: bool = False  # whether deviations and intervals are below the means


@dataclass(frozen=True)
class LatexParts:
    """The escaped parts of a table."""

    is_long: bool  # whether it spans several pages
    layout: Layout
    num_columns: int
    head: str
    body: list[str]
    comments: list[str]
    caption: str
    label: str
    below: list[str]  # paragraphs below the table
    letters: Letters
    num_lines: int  # printed lines, about


@once_per_table
def to_latex(ablation: Ablation) -> str:
    """A LaTeX table with its caption and notes. Its first lines name the packages that it needs.

    The usual columns fit into a column of a two-column paper. A wider table spans both columns. A
    table that is too long for a page is a longtable, and its notes are text below it.
    """
    parts = _parts(ablation, len(ablation.rows) > MAX_ROWS)
    if parts.is_long:
        lines = _longtable(parts)
    elif parts.num_lines > MAX_LINES:
        lines = _longtable(_parts(ablation, is_long=True))
    else:
        lines = _table(parts)
    lines += effects_latex(ablation, _escaped_breakable, _label(ablation), SMALL)
    return "\n".join(lines)


def lost_letters(ablation: Ablation) -> str:
    """Description of the letters that pdfLaTeX does not print. Empty if it prints all."""
    return _parts(ablation, len(ablation.rows) > MAX_ROWS).letters.lost


@once_per_table
def _parts(ablation: Ablation, is_long: bool) -> LatexParts:
    titles = headings(ablation, COLUMNS)
    found = zip(all_cells(ablation), ablation.rows, strict=True)
    all_of_rows = [_compact(cells, row) for cells, row in found]
    alignment = dict.fromkeys(titles, "r") | dict.fromkeys(WORDS, "l")
    layout = Layout("".join(alignment[name] for name in titles))
    if not is_long:
        plain = [cell_texts(cells, titles, one_line, "{}", "{}") for cells in all_of_rows]
        layout = _layout(titles, plain, layout.columns)
    body = [
        _line(_broken(cell_texts(cells, titles, escaped, BOLD, MARKS), titles, layout))
        for cells in all_of_rows
    ]
    head = _line(_head(titles, layout))
    below, num_lines = [], len(body)
    for letter, note in lettered(ablation):
        mark = rf"\textsuperscript{{{letter}}} " * bool(letter)
        below.append(rf"\par {mark}{_breakable(escaped(note.text))}")
        num_lines += _num_lines(note.text)
    sentences = [ablation.grid.description or ablation.grid.name, *main_sentences(ablation)]
    if "verdict" not in titles:
        sentences += _equivalent(ablation)
    above = _breakable(escaped(" ".join(sentences)))
    num_lines += _num_lines(" ".join(sentences), CAPTION_LINE)
    letters = letters_of([*body, *below, above, head])
    short = escaped(ablation.grid.description or ablation.grid.name)
    if letters.comments:  # the list of tables does not define these letters
        short = escaped(ablation.grid.name)
    return LatexParts(
        is_long=is_long,
        layout=layout,
        num_columns=len(titles),
        head=head,
        body=body,
        comments=[f"% {one_line(text)}" for text in _explanation(ablation, titles)],
        caption=rf"\caption[{{{short}}}]{{{above}}}",
        label=rf"\label{{{_label(ablation)}}}",
        below=below,
        letters=letters,
        num_lines=num_lines,
    )


def _num_lines(text: str, line: int = LINE) -> int:
    return math.ceil(len(text) / line)


def _explanation(ablation: Ablation, titles: Collection[str]) -> list[str]:
    """What a caption has no room for: how to read the numbers, changes and tuned values."""
    sentences = ["How to read this table:", *caption(ablation, titles)]
    if "changes" not in titles:
        changes = {row.variant: format_changes(row) for row in ablation.rows}
        sentences += [f"{variant}: {text}." for variant, text in changes.items() if text]
    if "tuned" not in titles:
        values = {row.variant: ablation.tuned_cells(row)[0] for row in ablation.rows}
        sentences += [f"Tuned, {variant}: {text}." for variant, text in values.items() if text]
    return sentences


def _equivalent(ablation: Ablation) -> Iterator[str]:
    """The rows that are equivalent to the reference, which have no mark."""
    names = [row.variant for row in ablation.rows if row.verdict is Verdict.EQUIVALENT]
    if names and ablation.grid.sesoi is not None:
        effect = ablation.metric.scale.show_amount(ablation.grid.sesoi)
        yield f"Equivalent (difference below {effect}, two one-sided t tests): {', '.join(names)}."


def _label(ablation: Ablation) -> str:
    """`tab:` and the name of the results folder, so that each view has its own label."""
    name = "--".join(filter(None, [results_name(ablation.grid), ablation.suffix]))
    return f"tab:{re.sub(r'[^A-Za-z0-9._+-]+', '-', name)}"


def _compact(cells: Cells, row: Row) -> Cells:
    """The cells without words that the caption has. Missing runs are beside the row's name."""
    spread, name = cells.spread, cells.variant
    if row.gaps:
        spread, name = spread.removesuffix(f"({row.gaps})").rstrip(), f"{name} ({row.gaps})"
    spread = _without_units(spread, row)
    further = tuple(
        other._replace(spread=_without_units(other.spread, row)) for other in cells.further
    )
    difference = cells.difference.removesuffix(f" ({UNDERTRAINED})")
    return cells._replace(variant=name, spread=spread, difference=difference, further=further)


def _without_units(spread: str, row: Row) -> str:
    return spread.replace(" (seeds)", "").replace(f" ({row.unit}s)", "")


def _head(titles: Mapping[str, str], layout: Layout) -> list[str]:
    """The headings. Units are below the names if the table is narrow."""
    heads = [escaped(title) for title in titles.values()]
    if layout.stacks:
        heads = [
            rf"\shortstack[r]{{{head.replace(' (', UNIT_BELOW)}}}" if " (" in head else head
            for head in heads
        ]
    return heads


def _layout(titles: Mapping[str, str], lines: Sequence[Sequence[str]], columns: str) -> Layout:
    """The first layout that fits into a column of a two-column paper, else one that does not.

    First names of rows are broken. Then deviations and intervals are put below the means.
    """
    texts = dict(zip(titles, zip(titles.values(), *lines, strict=True), strict=True))
    full = {name: max(map(_width_pt, of_column)) for name, of_column in texts.items()}
    name_pt = full.pop("variant")
    between_pt = BETWEEN * len(full)
    if name_pt + sum(full.values()) + between_pt <= COLUMN_PT:
        return Layout(columns)
    pieces = [piece for text in texts["variant"] for piece in re.split(r"(?<=[_\s/+,-])", text)]
    least_pt = max(map(_width_pt, pieces))
    columns = f"X{columns[1:]}"
    if least_pt + sum(full.values()) + between_pt <= COLUMN_PT:
        return Layout(columns, wraps=True)
    if "difference" in full:
        for name in filter(_has_two_parts, full):
            head, *others = texts.get(name, ("",))
            parts = [part for text in others for part in re.split(r" (?=\[|±)", text, maxsplit=1)]
            full[name] = max(map(_width_pt, [*head.split(" ("), *parts]))
        if least_pt + sum(full.values()) + between_pt <= COLUMN_PT:
            return Layout(columns, wraps=True, stacks=True)
    return Layout(f"l{columns[1:]}", is_narrow=False)


def _has_two_parts(column: str) -> bool:
    """Whether a column has means with deviations, or differences with intervals."""
    return column in ("metric", "difference") or column.startswith(FURTHER)


def _width_pt(text: str) -> float:
    """Width of a text in points, about."""
    total = 0.0
    for char in text:
        widths = [width for letters, width in WIDTHS if char in letters]
        total += widths[0] if widths else WIDTH
    return total


def _broken(cells: list[str], titles: Collection[str], layout: Layout) -> list[str]:
    """The cells with places where lines may be broken."""
    texts = dict(zip(titles, cells, strict=True))
    if layout.wraps:
        name = texts["variant"]
        texts["variant"] = _breakable(name)
    for name in filter(_has_two_parts, titles) if layout.stacks else ():
        texts[name] = re.sub(r"^(.*?) (\[|\$\\pm).*$", _stacked, texts.get(name, ""))
    return list(texts.values())


def _stacked(found: re.Match[str]) -> str:
    """A number above its deviation or interval."""
    above, text = found.group(1), found.group()
    return rf"\shortstack[r]{{{above}\\{{}}{text[len(above) + 1 :]}}}"


def _breakable(text: str) -> str:
    """Escaped text whose names may be broken after a mark."""
    return re.sub(r"(\\_|/|(?<=[A-Za-z])[+,])(?=\w)", r"\1\\allowbreak{}", text)


def _escaped_breakable(text: str) -> str:
    return _breakable(escaped(text))


def _table(parts: LatexParts) -> list[str]:
    """The lines of a floating table."""
    layout = parts.layout
    name, kind = ("table", "tabular") if layout.is_narrow else ("table*", "tabular")
    packages, begin = r"\usepackage{booktabs}", rf"\begin{{tabular}}{{{layout.columns}}}"
    if layout.wraps:
        packages += r" and \usepackage{tabularx}"
        kind, ragged = "tabularx", r">{\raggedright\arraybackslash}"
        begin = rf"\begin{{tabularx}}{{\linewidth}}{{{ragged}{layout.columns}}}"
    body = parts.body
    if layout.stacks:  # a line between rows of two lines
        body = [rf"{line} \addlinespace" for line in body]
    return [
        f"% needs {packages}",
        *parts.comments,
        *parts.letters.comments,
        *[rf"\begin{{{name}}}[t]", rf"\centering{SMALL}", *parts.letters.begin],
        *[parts.caption, parts.label],
        *[r"\par\smallskip", begin, r"\toprule", parts.head, r"\midrule"],
        *[*body, r"\bottomrule", rf"\end{{{kind}}}"],
        *_below(parts),
        *[*parts.letters.end, rf"\end{{{name}}}", ""],
    ]


def _below(parts: LatexParts) -> list[str]:
    if not parts.below:
        return []
    return [
        *[r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize\raggedright"],
        *[*parts.below, r"\end{minipage}"],
    ]


def _longtable(parts: LatexParts) -> list[str]:
    """The lines of a table over several pages."""
    columns = parts.num_columns
    return [
        r"% needs \usepackage{booktabs} and \usepackage{longtable}; longtable needs \onecolumn",
        *parts.comments,
        *parts.letters.comments,
        *[rf"\par\begingroup{SMALL}", *parts.letters.begin],
        *[rf"\begin{{longtable}}{{{parts.layout.columns}}}", rf"{parts.caption}{parts.label}\\"],
        *[r"\toprule", parts.head, r"\midrule", r"\endfirsthead"],
        *[r"\toprule", parts.head, r"\midrule", r"\endhead", r"\midrule"],
        rf"\multicolumn{{{columns}}}{{r}}{{continued on the next page}} \\",
        *[r"\endfoot", r"\bottomrule", r"\endlastfoot", *parts.body, r"\end{longtable}"],
        *[r"{\noindent\raggedright", *parts.below, r"\par}"],
        *[*parts.letters.end, r"\endgroup", ""],
    ]


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


_NOT_PLAIN = re.compile(
    r"->|--|(?<![\w.])-\d|[A-Za-z][\u0300-\u036f]|[^-A-Za-z0-9 .,:;()\[\]+*/='!?@]"
)


def escaped(text: str) -> str:
    """`text` for LaTeX. Letters beyond ASCII stay, and latex_letters.py defines them."""
    return _NOT_PLAIN.sub(_part, one_line(unicodedata.normalize("NFC", text)))


def _part(found: re.Match[str]) -> str:
    part = found.group()
    if part in ESCAPES:
        return ESCAPES[part]
    if is_wide(part):
        return WIDE.format(ord(part), part)
    if len(part) == 1:
        return part
    if part[0] == "-":  # sign and first digit of a negative number
        return f"$-${part[1]}"
    accent = ACCENTS.get(part[1])  # a letter and an accent that have no common code
    if accent is None:
        return part
    return rf"\{accent[0]}{{{part[0]}}}"
