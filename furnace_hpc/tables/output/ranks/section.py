"""The section of the report with the diagram of critical differences. It needs no script."""

from collections.abc import Iterator

from furnace_hpc.tables.output.escape import html
from furnace_hpc.tables.output.ranks.layout import (
    Diagram,
    Line,
    Name,
    describe,
    has_diagram,
    lay_out,
    sentences,
)
from furnace_hpc.tables.table import Ablation

# class -> width in pixels. The page shows one of the two pictures, so that letters keep their size.
WIDTHS = {"on-phone": 330, "on-desk": 640}
LETTER, LINE = 7.4, 15.0


def ranks_section(ablation: Ablation) -> Iterator[str]:
    """The section of the report. Nothing without a test that shows a difference."""
    ranks = ablation.ranks
    if ranks is None or not has_diagram(ranks):
        return
    label = html(describe(ranks))
    pictures = "".join(
        _picture(lay_out(ranks, width, LETTER, LINE), kind, label) for kind, width in WIDTHS.items()
    )
    yield (
        '<section class="of-grid" aria-labelledby="ranks-title">'
        f'<h2 id="ranks-title">Ranks over data sets</h2>{pictures}'
        f'<p class="about">{html(" ".join(sentences(ranks)))}</p></section>'
    )


def _picture(diagram: Diagram, kind: str, label: str) -> str:
    """The diagram as SVG."""
    axis, difference = diagram.axis, diagram.difference
    middle = (difference.x0 + difference.x1) / 2
    parts = [
        _line(difference, "rank-line"),
        *(_end(x, difference.y) for x in (difference.x0, difference.x1)),
        f'<text class="name" x="{middle:.1f}" y="{difference.y - 7:.1f}" text-anchor="middle">'
        f"{diagram.difference_text}</text>",
        _line(axis, "rank-line"),
    ]
    for x, text in diagram.ticks:
        parts.append(
            f'<path class="rank-line" d="M{x:.1f} {axis.y:.1f}v-5"/>'
            f'<text x="{x:.1f}" y="{axis.y - 9:.1f}" text-anchor="middle">{text}</text>'
        )
    for name in diagram.names:
        parts += _name(diagram, name)
    parts += [_line(bar, "joins") for bar in diagram.bars]
    size = f'viewBox="0 0 {diagram.width:g} {diagram.height:.0f}"'
    return (
        f'<svg class="ranks {kind}" {size} style="max-width:{diagram.width:g}px" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )


def _name(diagram: Diagram, name: Name) -> Iterator[str]:
    """The name, and the line from it to its rank."""
    edge = diagram.axis.x0 - 6 if name.is_left else diagram.axis.x1 + 6
    anchor, x = ("end", edge - 4) if name.is_left else ("start", edge + 4)
    yield (
        f'<path class="rank-line" d="M{name.rank_x:.1f} {diagram.axis.y:.1f}V{name.y:.1f}'
        f'H{edge:.1f}"/>'
    )
    first = name.y + 4 - (len(name.lines) - 1) * diagram.line_height / 2
    for number, text in enumerate(name.lines):
        y = first + number * diagram.line_height
        yield (
            f'<text class="name" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html(text)}</text>'
        )


def _line(line: Line, kind: str) -> str:
    return f'<path class="{kind}" d="M{line.x0:.1f} {line.y:.1f}H{line.x1:.1f}"/>'


def _end(x: float, y: float) -> str:
    return f'<path class="rank-line" d="M{x:.1f} {y - 3:.1f}v6"/>'
