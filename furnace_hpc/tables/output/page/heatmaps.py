"""Heat maps as HTML tables, which screen readers can read."""

from collections.abc import Iterator, Sequence

from furnace_hpc.tables import metric
from furnace_hpc.tables.large.drawn import drawn_rows, drawn_sentence, is_long
from furnace_hpc.tables.metric import Scale, scale_of
from furnace_hpc.tables.modality_subsets import Matrix, consistency_blocks, modality_matrix
from furnace_hpc.tables.output.escape import html
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.text import DASH

MODALITIES = (
    "Each trained network gets a subset of the modalities, on the samples that have at least one "
    "of them. Mean over runs. Hover over a cell for standard deviation and n. {colors}"
)
CONSISTENCY = (
    "Embeddings of {pair}, on samples that have both. Mean over runs. Compare matched pairs with "
    "mismatched ones, and recall with chance. {colors}"
)
COLORS = (
    "Orange is above {reference}, blue is below it. A difference that a t test at 1 % does not "
    "show (not corrected for the number of cells) has no colour."
)


def modalities(ablation: Ablation) -> Iterator[str]:
    """The section on subsets of the modalities, if results have them."""
    if matrix := modality_matrix(ablation):
        scale = scale_of(matrix.title)
        title = f"Subsets of the modalities: {matrix.title}{scale.unit}"
        about = MODALITIES.format(colors=_colors(ablation))
        yield _section(title, about, matrix, scale, _numbers(ablation))


def consistency(ablation: Ablation) -> Iterator[str]:
    """A section for each pair of modalities, if results have them."""
    for matrix in consistency_blocks(ablation):
        about = CONSISTENCY.format(pair=matrix.title, colors=_colors(ablation))
        title = f"Consistency of {matrix.title}"
        yield _section(title, about, matrix, metric.CONSISTENCY, _numbers(ablation))


def _numbers(ablation: Ablation) -> Sequence[int]:
    """Numbers of the rows that are shown: all, or those that charts of a long table draw."""
    if is_long(ablation):
        return drawn_rows(ablation)
    return range(len(ablation.rows))


def _colors(ablation: Ablation) -> str:
    text = COLORS.format(reference=ablation.grid.reference)
    if is_long(ablation):
        text += f" Shown: {drawn_sentence(ablation)}. runs.csv has the values of all runs."
    return text


def _section(title: str, about: str, matrix: Matrix, scale: Scale, numbers: Sequence[int]) -> str:
    columns = "".join(f'<th scope="col">{html(_breakable(name))}</th>' for name in matrix.columns)
    shades = matrix.shades()
    lines = []
    for number in numbers:
        variant = matrix.rows[number]
        means, deviations = matrix.means[number], matrix.deviations[number]
        columns_of_row = zip(means, deviations, matrix.counts[number], shades[number], strict=True)
        cells = "".join(_cell(*values, scale) for values in columns_of_row)
        lines.append(f'<tr><th scope="row" class="text">{html(variant)}</th>{cells}</tr>')
    return "\n".join(
        [
            f"<section><h2>{html(title)}</h2>",
            f'<div class="wide" tabindex="0" role="region" aria-label="{html(title)}">'
            '<table class="heat">',
            f'<thead><tr><th scope="col" class="text">variant</th>{columns}</tr></thead>',
            *["<tbody>", *lines, "</tbody></table></div>"],
            f'<p class="about">{html(about)}</p></section>',
        ]
    )


def _cell(mean: float | None, deviation: float | None, n: int, shade: float, scale: Scale) -> str:
    if mean is None:
        return f"<td>{DASH}</td>"
    precise = scale.for_deviation(deviation, mean)
    title = precise.show(mean)
    if deviation is not None:
        title += f" ± {precise.show_deviation(deviation)}"
    style = ""
    if shade:
        color = "heat" if shade > 0 else "cold"
        style = f' style="--shade:{abs(shade):.2f};--color:var(--{color})"'
    return f'<td{style} title="{title}, n={n}">{scale.show(mean)}</td>'


def _breakable(name: str) -> str:
    return name.replace("_", " ").replace("+", " + ")
