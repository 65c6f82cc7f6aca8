r"""A table as LaTeX, to be read in by a paper with `\input`. The same runs give the same bytes."""

import re
import unicodedata

from furnace_hpc.tables.output.captions import caption
from furnace_hpc.tables.output.cells import all_cells, changes_in_words, headings, lettered
from furnace_hpc.tables.output.escape import one_line
from furnace_hpc.tables.output.latex_letters import ACCENTS, WIDE, is_wide, letters_of
from furnace_hpc.tables.output.render import WORDS, cell_texts
from furnace_hpc.tables.statistics.significance import short_caption
from furnace_hpc.tables.table import Ablation

# what a text column holds
COLUMNS = ("variant", "n", "metric", "difference", "holm_p", "sign_flip_p", "train_s")
MAX_ROWS = 40  # of a table on one page
MAX_LINES = 52  # of a table on one page, with its caption and notes
LINE = 90  # letters of a line of notes, about
ESCAPES = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "|": r"\textbar{}"},
    **{"\u2013": "--", "->": r"$\to$", "--": "-{}-"},
}
SMALL = r"\footnotesize\setlength{\tabcolsep}{2.5pt}"


def to_latex(ablation: Ablation) -> str:
    """A LaTeX table with its caption and notes; its first lines name the packages that it needs.

    A table that is too long for a page is a longtable, whose notes are text below it.
    """
    return _to_latex(ablation)[0]


def lost_letters(ablation: Ablation) -> str:
    """What pdfLaTeX does not print as it is, in words; empty where it prints everything."""
    return _to_latex(ablation)[1]


def _to_latex(ablation: Ablation) -> tuple[str, str]:
    titles = headings(ablation, COLUMNS)
    body = [
        " & ".join(
            cell_texts(
                cells, titles, escaped, bold=r"\textbf{{{}}}", mark=r"\textsuperscript{{{}}}"
            )
        )
        + r" \\"
        for cells in all_cells(ablation)
    ]
    rows = [
        (row.variant, changes_in_words(row)) for row in ablation.rows if "changes" not in titles
    ]
    said = [
        *caption(ablation, titles),
        *(f"{variant}: {changes}." for variant, changes in rows if changes),
    ]
    notes = [
        rf"\textsuperscript{{{letter}}} " * bool(letter) + escaped(text)
        for letter, text, _ in lettered(ablation)
    ]
    below = [*map(escaped, said), *(rf"\par {note}" for note in notes)]
    above = escaped(f"{ablation.grid.description or ablation.grid.name} {short_caption(ablation)}")
    head = " & ".join(escaped(title) for title in titles.values()) + r" \\"
    letters = letters_of([*body, *below, above, head])
    # the list of tables has no such letters
    short = f"[{escaped(ablation.grid.name)}]" if letters.comments else ""
    name = rf"\caption{short}{{{above}}}"
    label = rf"\label{{tab:{ablation.grid.name}}}"
    columns = "".join("l" if title in WORDS else "r" for title in titles)
    num_lines = len(body) + sum(-(-len(text) // LINE) for text in [above, " ".join(said), *notes])
    if len(body) > MAX_ROWS or num_lines > MAX_LINES:
        lines = [
            r"% needs \usepackage{booktabs} and \usepackage{longtable}; longtable needs \onecolumn",
            *letters.comments,
            *[rf"\par\begingroup{SMALL}", *letters.begin],
            *[rf"\begin{{longtable}}{{{columns}}}", rf"{name}{label}\\"],
            *[
                r"\toprule",
                head,
                r"\midrule",
                r"\endfirsthead",
                r"\toprule",
                head,
                r"\midrule",
                r"\endhead",
            ],
            *[
                r"\midrule",
                rf"\multicolumn{{{len(titles)}}}{{r}}{{continued on the next page}} \\",
                r"\endfoot",
            ],
            *[r"\bottomrule", r"\endlastfoot", *body, r"\end{longtable}"],
            *[r"{\noindent\raggedright", *below, r"\par}"],
            *[*letters.end, r"\endgroup", ""],
        ]
    else:
        lines = [
            r"% needs \usepackage{booktabs}",
            *letters.comments,
            *[r"\begin{table}[t]", rf"\centering{SMALL}", *letters.begin],
            *[name, label],
            *[
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                head,
                r"\midrule",
                *body,
                r"\bottomrule",
            ],
            *[
                r"\end{tabular}",
                r"\par\smallskip",
                r"\begin{minipage}{\linewidth}\footnotesize\raggedright",
                *below,
            ],
            *[r"\end{minipage}", *letters.end, r"\end{table}", ""],
        ]
    return "\n".join(lines), letters.lost


_NOT_PLAIN = re.compile(
    r"->|--|(?<![\w.])-\d|[A-Za-z][\u0300-\u036f]|[^-A-Za-z0-9 .,:;()\[\]+*/='!?@]"
)


def escaped(text: str) -> str:
    """`text` for LaTeX. Letters beyond ASCII stay; latex_letters.py says what prints them."""
    return _NOT_PLAIN.sub(_part, one_line(unicodedata.normalize("NFC", text)))


def _part(found: re.Match[str]) -> str:
    part = found.group()
    if part in ESCAPES:
        return ESCAPES[part]
    if len(part) == 1:
        return WIDE.format(ord(part), part) if is_wide(part) else part
    if part[0] == "-":  # a negative number's sign and first digit
        return f"$-${part[1]}"
    accent = ACCENTS.get(part[1])  # on a letter that has no code of its own with it
    return rf"\{accent[0]}{{{part[0]}}}" if accent else part
