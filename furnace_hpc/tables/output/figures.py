"""Figures for a paper: means with intervals, ranks, learning curves, costs, and heat maps.

A figure without data is left out. The same runs give the same bytes.
"""

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from furnace_hpc.tables.large.drawn import drawn_rows, drawn_sentence, drawn_table
from furnace_hpc.tables.metric import CONSISTENCY, scale_of
from furnace_hpc.tables.modality_subsets import Matrix, consistency_blocks, modality_matrix
from furnace_hpc.tables.output.cells import all_headings
from furnace_hpc.tables.output.escape import one_line
from furnace_hpc.tables.output.profiles import Panels, profile_panels
from furnace_hpc.tables.output.ranks.figure import ranks_figure
from furnace_hpc.tables.output.ranks.layout import has_diagram
from furnace_hpc.tables.reading.curves import Curve, logged_curves
from furnace_hpc.tables.table import Ablation, Row, pair_differences
from furnace_hpc.tables.text import DASH, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = (
    *("differences", "means", "ranks", "profiles", "curves", "cost", "modalities"),
    "consistency",
)
# file type -> metadata that is left out, because it differs from call to call
FORMS: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}

# Okabe and Ito's colours, which colour-blind readers can distinguish, without yellow, which is too
# pale on paper.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# overlapping curves stay visible
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
MARKERS = "osD^vPX"
MAX_LINES = 12  # of a name
MAX_MARKED = 40  # a curve with more steps has no markers
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
    "svg.hashsalt": "furnace",  # without it the ids in the file are random
}


class RowStyle(NamedTuple):
    """How a row is drawn in every figure."""

    color: str
    marker: str
    dash: Any


def draw_figures(ablation: Ablation) -> dict[str, bytes]:
    """File name (`means.svg`) -> content of every figure, as SVG and PNG."""
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):  # not the user's matplotlibrc
        figures = dict(_figures(ablation))
        if sentence := drawn_sentence(ablation):
            for name, figure in figures.items():
                if name == "ranks":  # it has all methods
                    continue
                text = textwrap.fill(one_line(sentence), 95)
                figure.suptitle(text, x=0.01, ha="left", fontsize=7)
        return {
            f"{name}.{form}": _save(figure, form, metadata)
            for name, figure in figures.items()
            for form, metadata in FORMS.items()
        }


def _figures(whole: Ablation) -> Iterator[tuple[str, "Figure"]]:
    """The figures of the rows that are drawn."""
    ablation, numbers = drawn_table(whole), drawn_rows(whole)
    if any(row.difference for row in ablation.rows):
        yield "differences", _differences_figure(ablation)
    yield "means", _means_figure(ablation)
    if whole.ranks is not None and has_diagram(whole.ranks):
        yield "ranks", ranks_figure(whole.ranks, WIDTH_IN)
    if panels := profile_panels(ablation):
        yield "profiles", _profiles_figure(ablation, panels)
    if curves := logged_curves(ablation):
        yield "curves", _curves_figure(ablation, curves)
    if any(row.costs.train_s for row in ablation.rows if row.mean is not None):
        yield "cost", _cost_figure(ablation)
    if matrix := modality_matrix(whole):
        yield "modalities", _modalities_figure(matrix, numbers)
    if blocks := consistency_blocks(whole):
        yield "consistency", _consistency_figure(blocks, numbers)


def _differences_figure(ablation: Ablation) -> "Figure":
    lines = sum(1 + _label(row).count("\n") for row in ablation.compared)
    figure, (axes,) = _sheet(0.9 + 0.24 * lines)
    _draw_differences(axes, ablation)
    return figure


def _means_figure(ablation: Ablation) -> "Figure":
    lines = sum(1 + _label(row).count("\n") for row in ablation.rows)
    figure, (axes,) = _sheet(0.8 + 0.2 * lines)
    _draw_means(axes, ablation)
    return figure


def _profiles_figure(ablation: Ablation, found: Panels) -> "Figure":
    """One panel per row, with the profiles of the reference and of the row."""
    from matplotlib.figure import Figure

    num_columns = min(3, len(found.panels))
    num_lines = -(-len(found.panels) // num_columns)
    size = (WIDTH_IN, 0.5 + 1.6 * num_lines)
    figure = Figure(figsize=size, dpi=200, layout="constrained")
    parts = list(figure.subplots(num_lines, num_columns, squeeze=False, sharey=True).flat)
    factor = ablation.metric.scale.factor
    for axes, panel in zip(parts, found.panels, strict=False):
        for line in panel:
            style = RowStyle(COLORS[1], "", DASHES[0])
            if line.name == ablation.grid.reference:
                style = RowStyle(COLORS[0], "", DASHES[1])
            thresholds = [factor * value for value in line.thresholds]
            band = {"color": style.color, "alpha": 0.12, "linewidth": 0}
            axes.fill_between(thresholds, line.low, line.high, **band)
            axes.plot(thresholds, line.shares, color=style.color, linestyle=style.dash, linewidth=1)
        axes.set_title(textwrap.fill(one_line(panel[-1].name), 24), loc="left")
        axes.grid(linewidth=0.4, alpha=0.5)
    for axes in parts[len(found.panels) :]:
        axes.remove()
    reference = one_line(ablation.grid.reference)
    note = f"; dashed: {reference}" if len(found.panels[0]) > 1 else ""
    title = f"{one_line(found.title)}{ablation.metric.scale.unit}{note}"
    figure.supxlabel(textwrap.fill(title, 90), fontsize=7)
    return figure


def _curves_figure(ablation: Ablation, curves: dict[str, list[Curve]]) -> "Figure":
    figure, parts = _sheet(2.5, len(curves))
    for axes, (metric, of_rows) in zip(parts, curves.items(), strict=True):
        _draw_curves(axes, ablation, metric, of_rows)
    _draw_legend(figure, parts)
    return figure


def _cost_figure(ablation: Ablation) -> "Figure":
    figure, (axes,) = _sheet(2.6)
    _draw_cost(axes, ablation)
    _draw_legend(figure, [axes])
    return figure


def _modalities_figure(matrix: Matrix, numbers: Sequence[int]) -> "Figure":
    scale = scale_of(matrix.title)
    figure, (axes,) = _sheet(1.1 + 0.25 * len(numbers))
    title = f"{matrix.title}{scale.unit} with subsets of the modalities"
    _draw_heat(axes, matrix, numbers, title, scale.show)
    return figure


def _consistency_figure(blocks: Sequence[Matrix], numbers: Sequence[int]) -> "Figure":
    height_in = (1.3 + 0.25 * len(numbers)) * len(blocks)
    figure, parts = _sheet(height_in, len(blocks), stacked=True)
    for axes, block in zip(parts, blocks, strict=True):
        _draw_heat(axes, block, numbers, f"consistency of {block.title}", CONSISTENCY.show)
    return figure


def _sheet(
    height_in: float, count: int = 1, stacked: bool = False
) -> tuple["Figure", list["Axes"]]:
    """A figure with `count` axes, side by side or stacked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=200, layout="constrained")
    shape = (count, 1) if stacked else (1, count)
    return figure, list(figure.subplots(*shape, squeeze=False).flat)


def _draw_legend(figure: "Figure", parts: list["Axes"]) -> None:
    """Draw one legend for all axes below them, in as many columns as fit.

    The figure grows by its lines.
    """
    handles: dict[str, Any] = {}
    for axes in parts:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles[name] = handle
    if not handles:
        return
    for columns in (4, 3, 2, 1):
        legend = figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=columns
        )
        if columns == 1 or legend.get_window_extent().width < figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + 0.15 * -(-len(handles) // columns))
            return
        legend.remove()


def _label(row: Row) -> str:
    """The row's name, broken after _ and -, and the number of runs if some are missing."""
    name = "\n".join(wrap(one_line(row.variant), 20, MAX_LINES))
    if row.n != row.n_expected:
        name += f"\n({row.n} of {row.n_expected})"
    return name


def _draw_differences(axes: "Axes", ablation: Ablation) -> None:
    """Draw a forest plot: the pairs of each row as dots, and the mean with its interval."""
    scale, sesoi = ablation.metric.scale, ablation.grid.sesoi
    titles = [f"mean with {_kind_of_interval(ablation)}; dots: {ablation.unit}s"]
    if sesoi is not None and not ablation.why_no_verdict:
        axes.axvspan(-sesoi, sesoi, color="#e8e4dc", linewidth=0, zorder=0)
        titles.append(f"band: less than {scale.show_amount(sesoi)}")
    axes.axvline(0, color="black", linewidth=0.7)
    for number, row in enumerate(ablation.compared):
        if row.difference is None or ablation.reference is None:
            continue
        color, marker, _ = _row_style(ablation.rows.index(row))
        pairs = [
            scale.factor * value for value in pair_differences(row, ablation.reference).values()
        ]
        axes.plot(pairs, [number - 0.18] * len(pairs), ".", color=color, **DOT)
        if row.difference.shown:
            bounds = [scale.factor * bound for bound in row.difference.shown]
            axes.plot(bounds, [number + 0.12] * 2, color=color, linewidth=1.2)
        axes.plot(scale.factor * row.difference.mean, number + 0.12, marker, color=color, ms=4)
    axes.set_yticks(range(len(ablation.compared)), [_label(row) for row in ablation.compared])
    axes.set_ylim(len(ablation.compared) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    reference, metric = one_line(ablation.grid.reference), ablation.metric
    axes.set_xlabel(
        f"{one_line(metric.name)}: difference to {reference}{scale.difference_unit}, "
        f"{metric.better} is better"
    )
    axes.set_title("; ".join(titles), loc="left")


def _kind_of_interval(ablation: Ablation) -> str:
    if ablation.why_no_verdict:
        return "95 % interval, not corrected"
    return "simultaneous 95 % interval"


def _draw_means(axes: "Axes", ablation: Ablation) -> None:
    """Draw the runs of each row as dots, and below them their mean with its interval."""
    scale = ablation.metric.scale
    for number, row in enumerate(ablation.rows):
        color, marker, _ = _row_style(number)
        if row is ablation.reference and row.mean is not None:
            axes.axvline(scale.factor * row.mean, color=color, linewidth=0.6, linestyle=":")
        seeds = [scale.factor * value for value in row.values.values()]
        axes.plot(seeds, [number - 0.18] * len(seeds), ".", color=color, **DOT)
        if row.interval:
            bounds = [scale.factor * bound for bound in row.interval]
            axes.plot(bounds, [number + 0.12] * 2, color=color, linewidth=1.2)
        if row.mean is not None:
            axes.plot(scale.factor * row.mean, number + 0.12, marker, color=color, markersize=4)
    axes.set_yticks(range(len(ablation.rows)), [_label(row) for row in ablation.rows])
    axes.set_ylim(len(ablation.rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    axes.set_xlabel(f"{one_line(ablation.metric.name)}{scale.unit}")
    dots = "runs" if ablation.packs else "seeds"
    axes.set_title(f"mean with 95 % interval; dots: {dots}", loc="left")


def _draw_curves(axes: "Axes", ablation: Ablation, metric: str, curves: Sequence[Curve]) -> None:
    """Draw one metric of each row over steps: mean, and a band from smallest to largest seed."""
    scale = scale_of(metric)
    for number, (row, curve) in enumerate(zip(ablation.rows, curves, strict=True)):
        if not curve.steps:
            continue
        color, marker, dash = _row_style(number)
        mean, low, high = ([scale.factor * value for value in part] for part in curve[1:])
        axes.fill_between(curve.steps, low, high, color=color, alpha=0.12, linewidth=0)
        axes.plot(
            curve.steps,
            mean,
            color=color,
            linestyle=dash,
            linewidth=1,
            marker=marker * (len(curve.steps) < MAX_MARKED),
            markersize=2.5,
            label=one_line(row.variant),
        )
    axes.grid(linewidth=0.4, alpha=0.5)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(f"{one_line(metric)}{scale.unit}")
    axes.set_title("mean; band: smallest to largest seed", loc="left")


def _draw_cost(axes: "Axes", ablation: Ablation) -> None:
    """Draw each row as a point: score with its interval against seconds in training steps."""
    scale = ablation.metric.scale
    for number, row in enumerate(ablation.rows):
        if row.mean is None or row.costs.train_s is None:
            continue
        color, marker, _ = _row_style(number)
        if row.interval:
            bounds = [scale.factor * bound for bound in row.interval]
            axes.plot([row.costs.train_s] * 2, bounds, color=color, linewidth=1)
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
    axes.set_xlabel(f"{all_headings(ablation)['train_s']}, median over runs")
    axes.set_ylabel(f"{one_line(ablation.metric.name)}{scale.unit}")
    axes.set_title("mean with 95 % interval of the score", loc="left")


def _draw_heat(
    axes: "Axes",
    matrix: Matrix,
    numbers: Sequence[int],
    title: str,
    show: Callable[[float], str],
) -> None:
    """Draw means of some rows as numbers in cells. Colours are those of the report's heat maps."""
    shades = matrix.shades()
    colors = [shades[number] for number in numbers]
    axes.imshow(colors, cmap="PuOr_r", vmin=-2, vmax=2, aspect="auto")
    for at, number in enumerate(numbers):
        for column, value in enumerate(matrix.means[number]):
            text = DASH
            if value is not None:
                text = show(value)
            axes.text(column, at, text, ha="center", va="center", fontsize=7)
    columns = [one_line(name).replace("_", " ").replace("+", " + ") for name in matrix.columns]
    names = [textwrap.fill(name, 11) for name in columns]
    axes.set_xticks(range(len(names)), names, fontsize=7)
    axes.set_yticks(range(len(numbers)), [one_line(matrix.rows[number]) for number in numbers])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(one_line(title), loc="left")


def _row_style(number: int) -> RowStyle:
    return RowStyle(COLORS[number % 7], MARKERS[(number + number // 7) % 7], DASHES[number % 4])


def _save(figure: "Figure", form: str, metadata: dict[str, None]) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format=form, metadata=metadata)
    return content.getvalue()
