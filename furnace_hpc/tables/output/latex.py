r"""A table as LaTeX, for `\input` in a paper. The same runs give the same bytes."""

import re
import unicodedata
from dataclasses import dataclass

from furnace_hpc.tables.output.captions import caption, short_caption
from furnace_hpc.tables.output.cells import all_cells, format_changes, headings, lettered
from furnace_hpc.tables.output.effects import effects_latex
from furnace_hpc.tables.output.escape import one_line
from furnace_hpc.tables.output.latex_letters import ACCENTS, WIDE, Letters, is_wide, letters_of
from furnace_hpc.tables.output.render import WORDS, cell_texts
from furnace_hpc.tables.table import Ablation

# columns that fit into a text column of a paper
COLUMNS = ("variant", "n", "metric", "difference", "verdict", "tuned", "train_s")
MAX_ROWS = 40  # of a table on one page
MAX_LINES = 52  # of a table on one page, with its caption and notes
LINE = 90  # characters in a line of notes, about
ESCAPES = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "|": r"\textbar{}"},
    **{"\u2013": "--", "->": r"$\to$", "--": "-{}-"},
}
SMALL = r"\footnotesize\setlength{\tabcolsep}{2.5pt}"


@dataclass(frozen=True)
class LatexParts:
    """The escaped parts of a table."""

    columns: str  # argument of the environment
    num_columns: int
    head: str
    body: list[str]
    caption: str
    label: str
    below: list[str]  # paragraphs below the table
    letters: Letters
    num_lines: int  # printed lines, about


def to_latex(ablation: Ablation) -> str:
    """A LaTeX table with its caption and notes. Its first lines name the packages that it needs.

    A table that is too long for a page is a longtable, and its notes are text below it.
    """
    parts = _parts(ablation)
    if len(parts.body) > MAX_ROWS or parts.num_lines > MAX_LINES:
        lines = _longtable(parts)
    else:
        lines = _table(parts)
    return "\n".join(lines + effects_latex(ablation, escaped, SMALL))


def lost_letters(ablation: Ablation) -> str:
    """Description of the letters that pdfLaTeX does not print. Empty if it prints all."""
    return _parts(ablation).letters.lost


def _parts(ablation: Ablation) -> LatexParts:
    titles = headings(ablation, COLUMNS)
    body = [
        _line(cell_texts(cells, titles, escaped, r"\textbf{{{}}}", r"\textsuperscript{{{}}}"))
        for cells in all_cells(ablation)
    ]
    head = _line([escaped(title) for title in titles.values()])
    sentences = caption(ablation, titles)
    if "changes" not in titles:
        changes = {row.variant: format_changes(row) for row in ablation.rows}
        sentences += [f"{variant}: {text}." for variant, text in changes.items() if text]
    notes = []
    for letter, note in lettered(ablation):
        mark = rf"\textsuperscript{{{letter}}} " * bool(letter)
        notes.append(mark + escaped(note.text))
    below = [*map(escaped, sentences), *(rf"\par {note}" for note in notes)]
    above = escaped(f"{ablation.grid.description or ablation.grid.name} {short_caption(ablation)}")
    letters = letters_of([*body, *below, above, head])
    short = ""
    if letters.comments:  # the list of tables does not define these letters
        short = f"[{escaped(ablation.grid.name)}]"
    alignment = dict.fromkeys(titles, "r") | dict.fromkeys(WORDS, "l")
    texts = [above, " ".join(sentences), *notes]
    return LatexParts(
        columns="".join(alignment[name] for name in titles),
        num_columns=len(titles),
        head=head,
        body=body,
        caption=rf"\caption{short}{{{above}}}",
        label=rf"\label{{tab:{ablation.grid.name}}}",
        below=below,
        letters=letters,
        num_lines=len(body) + sum(-(-len(text) // LINE) for text in texts),
    )


def _table(parts: LatexParts) -> list[str]:
    """The lines of a floating table."""
    return [
        r"% needs \usepackage{booktabs}",
        *parts.letters.comments,
        *[r"\begin{table}[t]", rf"\centering{SMALL}", *parts.letters.begin],
        *[parts.caption, parts.label],
        *[rf"\begin{{tabular}}{{{parts.columns}}}", r"\toprule", parts.head, r"\midrule"],
        *[*parts.body, r"\bottomrule", r"\end{tabular}"],
        *[r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize\raggedright"],
        *[*parts.below, r"\end{minipage}", *parts.letters.end, r"\end{table}", ""],
    ]


def _longtable(parts: LatexParts) -> list[str]:
    """The lines of a table over several pages."""
    columns = parts.num_columns
    return [
        r"% needs \usepackage{booktabs} and \usepackage{longtable}; longtable needs \onecolumn",
        *parts.letters.comments,
        *[rf"\par\begingroup{SMALL}", *parts.letters.begin],
        *[rf"\begin{{longtable}}{{{parts.columns}}}", rf"{parts.caption}{parts.label}\\"],
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
