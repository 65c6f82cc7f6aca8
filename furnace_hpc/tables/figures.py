"""The figure beside a table: means with intervals and seeds, and validation over training.

The same runs give the same bytes.
"""

import io
import re
import textwrap
from collections.abc import Sequence
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, NamedTuple

from furnace_hpc.runs.records import read_metrics
from furnace_hpc.tables.cells import Scale, scale_of
from furnace_hpc.tables.table import Ablation, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers; yellow is left out, as it vanishes on paper.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))  # curves that lie on each other stay visible
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
    "svg.hashsalt": "furnace",  # otherwise the ids in the file are random
}


class Curve(NamedTuple):
    """Validation over training: mean, minimum and maximum over the row's seeds at each step."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def draw_ablation(ablation: Ablation) -> dict[str, bytes]:
    """File name -> content of the figure, as SVG and PNG."""
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):  # whatever this user's matplotlibrc says
        figure = _figure(ablation)
        return {
            "ablation.svg": _saved(figure, "svg", {"Date": None, "Creator": None}),
            "ablation.png": _saved(figure, "png", {"Software": None}),
        }


def validation_curve(row: Row, metric: str) -> Curve:
    """The curve of a row's finished runs, at the steps where all of them have a finite value."""
    curves = [_values(read_metrics(run.folder), metric) for run in row.runs if run.result]
    steps = sorted(set[int].intersection(*(set(curve) for curve in curves))) if curves else []
    at_step = [[curve[step] for curve in curves] for step in steps]
    return Curve(
        steps,
        [sum(values) / len(values) for values in at_step],
        [min(values) for values in at_step],
        [max(values) for values in at_step],
    )


def _values(records: Sequence[dict[str, Any]], metric: str) -> dict[int, float]:
    found = {record["step"]: record.get(metric, nan) for record in records if record["kind"] == "val"}
    return {step: value for step, value in found.items() if isfinite(value)}


def _figure(ablation: Ablation) -> "Figure":
    from matplotlib.figure import Figure

    labels = [_label(row) for row in ablation.rows]
    lines = sum(1 + label.count("\n") for label in labels)
    figure = Figure(figsize=(WIDTH_IN, 1.7 + 0.16 * lines), dpi=300, layout="constrained")
    left, right = figure.subplots(1, 2)
    scale = scale_of(ablation.grid.metric)
    _draw_means(left, ablation, labels, scale)
    _draw_curves(right, ablation, scale)
    figure.set_figheight(figure.get_figheight() + 0.15 * _draw_legend(figure, right))
    return figure


def _draw_legend(figure: "Figure", axes: "Axes") -> int:
    """Put the legend under the axes in as many columns as fit, and return its number of lines."""
    handles, names = axes.get_legend_handles_labels()
    for columns in (4, 3, 2, 1) if names else ():
        legend = figure.legend(handles, names, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width < figure.bbox.width:
            return -(-len(names) // columns)
        legend.remove()
    return 0


def _label(row: Row) -> str:
    """The row's name, broken after _ and -, and how many runs are shown when some are missing."""
    name = textwrap.fill(re.sub(r"([_-])", r"\1 ", row.variant), 20).replace(" ", "")
    return name if row.n == row.n_expected else f"{name}\n({row.n} of {row.n_expected})"


def _draw_means(axes: "Axes", ablation: Ablation, labels: list[str], scale: Scale) -> None:
    """Each row's seeds as dots, and above them its mean with the interval."""
    for number, row in enumerate(ablation.rows):
        color, marker, _ = _look(number)
        if row.variant == ablation.grid.reference and row.mean is not None:
            axes.axvline(scale.factor * row.mean, color=color, linewidth=0.6, linestyle=":")
        seeds = [scale.factor * value for value in row.values.values()]
        axes.plot(seeds, [number + 0.18] * len(seeds), ".", color=color, **DOT)
        if row.interval:
            low, high = row.interval
            axes.plot([scale.factor * low, scale.factor * high], [number - 0.12] * 2, color=color, linewidth=1.2)
        if row.mean is not None:
            axes.plot(scale.factor * row.mean, number - 0.12, marker, color=color, markersize=4)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    axes.set_xlabel(f"{ablation.grid.metric}{scale.unit}")
    axes.set_title("mean with 95 % interval; dots: seeds", loc="left")


def _draw_curves(axes: "Axes", ablation: Ablation, scale: Scale) -> None:
    """Each row's validation metric over steps: mean, and the band from smallest to largest seed."""
    metric = "val/" + ablation.grid.metric.partition("/")[2]
    for number, row in enumerate(ablation.rows):
        curve = validation_curve(row, metric)
        if not curve.steps:
            continue
        color, marker, dash = _look(number)
        mean, low, high = ([scale.factor * value for value in part] for part in curve[1:])
        axes.fill_between(curve.steps, low, high, color=color, alpha=0.12, linewidth=0)
        axes.plot(
            *(curve.steps, mean),
            **{"color": color, "linestyle": dash, "linewidth": 1, "marker": marker, "markersize": 2.5},
            label=row.variant,
        )
    axes.grid(linewidth=0.4, alpha=0.5)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(f"{metric}{scale.unit}")
    axes.set_title("mean; band: smallest to largest seed", loc="left")


def _look(number: int) -> tuple[str, str, Any]:
    """Colour, marker and dash of a row."""
    return COLORS[number % 7], MARKERS[(number + number // 7) % 7], DASHES[number % 4]


def _saved(figure: "Figure", form: str, metadata: dict[str, None]) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format=form, metadata=metadata)
    return content.getvalue()
