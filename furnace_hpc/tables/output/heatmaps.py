"""Heat maps as HTML tables: read by eye, by keyboard and by a screen reader alike."""

from collections.abc import Callable, Iterator

from furnace_hpc.tables.modality_subsets import Matrix, consistency_blocks, modality_matrix
from furnace_hpc.tables.output.cells import DASH, scale_of
from furnace_hpc.tables.output.escape import html
from furnace_hpc.tables.table import Ablation

MODALITIES = (
    "Each trained network is shown a part of the modalities only, and the samples that have any of them. "
    "Mean over runs; deeper is higher. Hover for deviation and n."
)
CONSISTENCY = (
    "Between the embeddings of {pair}, on samples that have both. Mean over runs; matched pairs mean something only "
    "beside mismatched ones, and recall beside its chance."
)


def modalities(ablation: Ablation) -> Iterator[str]:
    """The section on missing modalities; none where no result has one."""
    if matrix := modality_matrix(ablation):
        scale = scale_of(matrix.title)
        yield _section(
            f"With a part of the modalities: {matrix.title}{scale.unit}",
            MODALITIES,
            matrix,
            scale.show,
        )


def consistency(ablation: Ablation) -> Iterator[str]:
    """A section for each pair of modalities; none where no result has one."""
    for matrix in consistency_blocks(ablation):
        about = CONSISTENCY.format(pair=matrix.title)
        yield _section(
            f"Consistency of {matrix.title}", about, matrix, lambda value: f"{value:.3f}"
        )


def _section(title: str, about: str, matrix: Matrix, show: Callable[[float], str]) -> str:
    columns = "".join(f'<th scope="col">{html(_broken(name))}</th>' for name in matrix.columns)
    shades = matrix.shades()
    lines = []
    for number, variant in enumerate(matrix.rows):
        cells = (
            _cell(
                matrix.means[number][at],
                matrix.deviations[number][at],
                matrix.counts[number][at],
                shade,
                show,
            )
            for at, shade in enumerate(shades[number])
        )
        lines.append(f'<tr><th scope="row" class="text">{html(variant)}</th>{"".join(cells)}</tr>')
    return "\n".join(
        [
            f"<section><h2>{html(title)}</h2>",
            f'<div class="wide" tabindex="0" role="region" aria-label="{html(title)}"><table class="heat">',
            f'<thead><tr><th scope="col" class="text">variant</th>{columns}</tr></thead>',
            *["<tbody>", *lines, "</tbody></table></div>"],
            f'<p class="about">{html(about)}</p></section>',
        ]
    )


def _cell(
    mean: float | None, deviation: float | None, n: int, shade: float, show: Callable[[float], str]
) -> str:
    if mean is None:
        return f"<td>{DASH}</td>"
    spread = f" ± {show(deviation)}" if deviation is not None else ""
    return f'<td style="--shade:{shade:.2f}" title="{show(mean)}{spread}, n={n}">{show(mean)}</td>'


def _broken(name: str) -> str:
    return name.replace("_", " ").replace("+", " + ")
