"""The diagram of critical differences as a figure for a paper."""

from typing import TYPE_CHECKING, Any

from furnace_hpc.tables.output.ranks.layout import Diagram, bars_sentence, lay_out, title
from furnace_hpc.tables.statistics.ranks import Ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LETTER_PT, LINE_PT = 5.1, 10.5  # of text with 8 points
POINTS = 72  # per inch
THIN: dict[str, Any] = {"color": "black", "linewidth": 0.6, "solid_capstyle": "butt"}

THICK: dict[str, Any] = THIN | {"linewidth": 2.5}


def ranks_figure(ranks: Ranks, width_in: float) -> "Figure":
    """The diagram, one unit per point."""
    from matplotlib.figure import Figure

    # constrained layout needs a margin on both sides
    diagram = lay_out(ranks, width_in * POINTS - 8, LETTER_PT, LINE_PT)
    size = (width_in, diagram.height / POINTS + 0.3)
    figure = Figure(figsize=size, dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, diagram.width)
    axes.set_ylim(diagram.height, 0)
    axes.set_axis_off()
    axes.set_title(f"{title(ranks)}; {bars_sentence(ranks)}", loc="left")
    _draw(axes, diagram)
    return figure


def _draw(axes: "Axes", diagram: Diagram) -> None:
    axis, difference = diagram.axis, diagram.difference
    for line in (axis, difference):
        axes.plot([line.x0, line.x1], [line.y, line.y], **THIN)
    for x in (difference.x0, difference.x1):
        axes.plot([x, x], [difference.y - 2, difference.y + 2], **THIN)
    middle = (difference.x0 + difference.x1) / 2
    axes.text(middle, difference.y - 3, diagram.difference_text, ha="center", va="bottom")
    for x, text in diagram.ticks:
        axes.plot([x, x], [axis.y - 3, axis.y], **THIN)
        axes.text(x, axis.y - 4, text, ha="center", va="bottom")
    for name in diagram.names:
        edge = axis.x0 - 4 if name.is_left else axis.x1 + 4
        side, x = ("right", edge - 3) if name.is_left else ("left", edge + 3)
        axes.plot([name.rank_x, name.rank_x, edge], [axis.y, name.y, name.y], **THIN)
        axes.text(x, name.y, "\n".join(name.lines), ha=side, va="center")
    for bar in diagram.bars:
        axes.plot([bar.x0, bar.x1], [bar.y, bar.y], **THICK)
