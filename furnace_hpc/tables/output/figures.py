"""Figures for a paper: means with intervals, learning curves, cost against score, and heat maps where there are parts.

The same runs give the same bytes.
"""

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from furnace_hpc.tables.curves import TRAIN_LOSS, Curve, curves_of, validation_metric
from furnace_hpc.tables.modality_subsets import Matrix, consistency_blocks, modality_matrix
from furnace_hpc.tables.output.cells import Scale, headings, scale_of
from furnace_hpc.tables.output.escape import one_line
from furnace_hpc.tables.table import Ablation, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("means", "curves", "cost", "modalities", "consistency")
FORMS: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}

# Okabe and Ito's colours, told apart by colour-blind readers; yellow is left out, as it vanishes on
# paper.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# curves that lie on each other stay visible
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
MARKERS = "osD^vPX"
DOT: dict[str, Any] = {"alpha": 0.6, "markersize": 5, "markeredgewidth": 0}
WIDTH_IN = 5.5  # a text column
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "svg.hashsalt": "furnace",  # otherwise the ids in the file are random
}


def draw_figures(ablation: Ablation) -> dict[str, bytes]:
    """File name (`means.svg`) -> content of every figure that there is something to draw for, as SVG and PNG."""
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):  # whatever this user's matplotlibrc says
        figures = dict(_figures(ablation))
        return {
            f"{name}.{form}": _saved(figure, form, metadata)
            for name, figure in figures.items()
            for form, metadata in FORMS.items()
        }


def _figures(ablation: Ablation) -> Iterator[tuple[str, "Figure"]]:
    lines = sum(1 + _label(row).count("\n") for row in ablation.rows)
    figure, (axes,) = _sheet(0.8 + 0.2 * lines)
    _draw_means(axes, ablation)
    yield "means", figure
    curves = curves_of(ablation, (validation_metric(ablation), TRAIN_LOSS))
    if any(curve.steps for of_row in curves for curve in of_row):
        by_metric = dict(
            zip((validation_metric(ablation), TRAIN_LOSS), zip(*curves, strict=True), strict=True)
        )
        logged = {
            metric: of_rows
            for metric, of_rows in by_metric.items()
            if any(curve.steps for curve in of_rows)
        }
        figure, parts = _sheet(2.5, len(logged))
        for axes, (metric, of_rows) in zip(parts, logged.items(), strict=True):
            _draw_curves(axes, ablation, metric, of_rows)
        _draw_legend(figure, parts)
        yield "curves", figure
    if any(row.costs.train_s for row in ablation.rows if row.mean is not None):
        figure, (axes,) = _sheet(2.6)
        _draw_cost(axes, ablation)
        _draw_legend(figure, [axes])
        yield "cost", figure
    if matrix := modality_matrix(ablation):
        scale = scale_of(matrix.title)
        figure, (axes,) = _sheet(1.1 + 0.25 * len(matrix.rows))
        _draw_heat(
            axes, matrix, f"{matrix.title}{scale.unit} with these modalities alone", scale.show
        )
        yield "modalities", figure
    if blocks := consistency_blocks(ablation):
        figure, parts = _sheet(
            (1.3 + 0.25 * len(ablation.rows)) * len(blocks), len(blocks), stacked=True
        )
        for axes, block in zip(parts, blocks, strict=True):
            _draw_heat(axes, block, f"consistency of {block.title}", lambda value: f"{value:.2f}")
        yield "consistency", figure


def _sheet(
    height_in: float, count: int = 1, stacked: bool = False
) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=200, layout="constrained")
    shape = (count, 1) if stacked else (1, count)
    return figure, list(figure.subplots(*shape, squeeze=False).flat)


def _draw_legend(figure: "Figure", parts: list["Axes"]) -> None:
    """Put one legend for all axes under them in as many columns as fit, and make the figure higher by its lines."""
    known = {
        name: handle
        for axes in parts
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    for columns in (4, 3, 2, 1) if known else ():
        legend = figure.legend(
            list(known.values()), list(known), loc="outside lower center", ncols=columns
        )
        if columns == 1 or legend.get_window_extent().width < figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + 0.15 * -(-len(known) // columns))
            return
        legend.remove()


def _label(row: Row) -> str:
    """The row's name, broken after _ and -, and how many runs are shown when some are missing."""
    name = textwrap.fill(re.sub(r"([_-])", r"\1 ", one_line(row.variant)), 20).replace(" ", "")
    return name if row.n == row.n_expected else f"{name}\n({row.n} of {row.n_expected})"


def _draw_means(axes: "Axes", ablation: Ablation) -> None:
    """Each row's seeds as dots, and below them its mean with the interval."""
    scale = scale_of(ablation.grid.metric)
    for number, row in enumerate(ablation.rows):
        color, marker, _ = _look(number)
        if row.variant == ablation.grid.reference and row.mean is not None:
            axes.axvline(scale.factor * row.mean, color=color, linewidth=0.6, linestyle=":")
        seeds = [scale.factor * value for value in row.values.values()]
        axes.plot(seeds, [number - 0.18] * len(seeds), ".", color=color, **DOT)
        if row.interval:
            low, high = row.interval
            axes.plot(
                [scale.factor * low, scale.factor * high],
                [number + 0.12] * 2,
                color=color,
                linewidth=1.2,
            )
        if row.mean is not None:
            axes.plot(scale.factor * row.mean, number + 0.12, marker, color=color, markersize=4)
    axes.set_yticks(range(len(ablation.rows)), [_label(row) for row in ablation.rows])
    axes.set_ylim(len(ablation.rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    axes.set_xlabel(f"{one_line(ablation.grid.metric)}{scale.unit}")
    axes.set_title(
        f"mean with 95 % interval; dots: {'runs' if ablation.packs else 'seeds'}", loc="left"
    )


def _draw_curves(axes: "Axes", ablation: Ablation, metric: str, curves: Sequence[Curve]) -> None:
    """One metric of each row over steps: mean, and the band from smallest to largest seed."""
    scale = scale_of(metric)
    for number, (row, curve) in enumerate(zip(ablation.rows, curves, strict=True)):
        if not curve.steps:
            continue
        color, marker, dash = _look(number)
        mean, low, high = ([scale.factor * value for value in part] for part in curve[1:])
        axes.fill_between(curve.steps, low, high, color=color, alpha=0.12, linewidth=0)
        marked = marker if len(curve.steps) < 40 else ""
        look = {
            "color": color,
            "linestyle": dash,
            "linewidth": 1,
            "marker": marked,
            "markersize": 2.5,
        }
        axes.plot(curve.steps, mean, **look, label=one_line(row.variant))
    axes.grid(linewidth=0.4, alpha=0.5)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(f"{one_line(metric)}{scale.unit}")
    axes.set_title("mean; band: smallest to largest seed", loc="left")


def _draw_cost(axes: "Axes", ablation: Ablation) -> None:
    """Score with its interval against time in training steps, a point a row."""
    scale: Scale = scale_of(ablation.grid.metric)
    for number, row in enumerate(ablation.rows):
        if row.mean is None or row.costs.train_s is None:
            continue
        color, marker, _ = _look(number)
        if row.interval:
            low, high = (scale.factor * bound for bound in row.interval)
            axes.plot([row.costs.train_s] * 2, [low, high], color=color, linewidth=1)
        axes.plot(
            row.costs.train_s,
            scale.factor * row.mean,
            marker,
            color=color,
            label=one_line(row.variant),
            linestyle="none",
        )
    axes.grid(linewidth=0.4, alpha=0.5)
    axes.margins(x=0.12)
    axes.set_xlabel(f"{headings(ablation)['train_s']}, mean over runs")
    axes.set_ylabel(f"{one_line(ablation.grid.metric)}{scale.unit}")
    axes.set_title("mean with 95 % interval of the score", loc="left")


def _draw_heat(axes: "Axes", matrix: Matrix, title: str, show: Callable[[float], str]) -> None:
    """Means as numbers in cells; the deeper, the higher (columns of other measures each for itself)."""
    shades = matrix.shades()
    axes.imshow(shades, cmap="Oranges", vmin=0, vmax=2, aspect="auto")
    for at, line in enumerate(matrix.means):
        for column, value in enumerate(line):
            axes.text(
                column,
                at,
                "\u2013" if value is None else show(value),
                ha="center",
                va="center",
                fontsize=7,
            )
    names = [
        textwrap.fill(one_line(name).replace("_", " ").replace("+", "+ "), 11)
        for name in matrix.columns
    ]
    axes.set_xticks(range(len(names)), names, fontsize=7)
    axes.set_yticks(range(len(matrix.rows)), [one_line(name) for name in matrix.rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(one_line(title), loc="left")


def _look(number: int) -> tuple[str, str, Any]:
    """Colour, marker and dash of a row."""
    return COLORS[number % 7], MARKERS[(number + number // 7) % 7], DASHES[number % 4]


def _saved(figure: "Figure", form: str, metadata: dict[str, None]) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format=form, metadata=metadata)
    return content.getvalue()
