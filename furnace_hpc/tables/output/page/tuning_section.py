"""The section of the report on tuning: chosen values, costs, and a chart."""

from collections.abc import Iterator
from typing import NamedTuple

from furnace_hpc.tables.metric import Scale
from furnace_hpc.tables.output.escape import html
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.tuning.tuned_rows import TunedRow, Tuning
from furnace_hpc.tables.tuning.words import budget

# The picture is as narrow as a phone, so that its text is not made smaller there.
WIDTH, HEIGHT = 340, 240  # of the plot with its axes; the names of the rows are below it
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 36
MAX_WIDTH = 480  # pixels on a large screen
NUM_COLORS = 7  # --c0 to --c6 in report.css
DASHES = ("", "6 3", "2 2", "8 2 2 2")
NUM_STEPS = 5  # between the horizontal lines
LINE = 17  # height of a line of text
SAMPLE = 20  # length of a line beside its name
MAX_NAME = 42  # characters


def tuning_section(ablation: Ablation) -> Iterator[str]:
    """The section of the report. Nothing if the grid does not tune."""
    tuning = ablation.tuning
    if tuning is None:
        return
    yield (
        '<section aria-labelledby="tuning-title"><h2 id="tuning-title">Tuning</h2>'
        f'<p class="about">Each row: {html(budget(tuning))}.</p>'
    )
    yield _table(tuning)
    drawn = [row for row in tuning.rows.values() if row.curve()]
    if drawn:
        yield _chart(tuning, drawn)
        yield (
            '<p class="about">Expected best of k trials, from the trials of each row (Dodge et al. '
            "2019). If a curve still rises at its end, more trials may help that row. The best of "
            "many validation results is optimistic, so compare rows by the table above.</p>"
        )
    yield "</section>"


def _table(tuning: Tuning) -> str:
    scale = tuning.metric.scale
    device = "GPU" if tuning.on_gpus else "process"
    titles = ["variant", "chosen values", f"best trial{scale.unit}", "failed", f"{device}-hours"]
    head = "".join(f'<th scope="col">{html(title)}</th>' for title in titles)
    head = head.replace('<th scope="col">', '<th scope="col" class="text">', 2)
    lines = []
    for row in tuning.rows.values():
        best = ", ".join(scale.show(choice.best) for choice in row.choices) or "\u2013"
        failed = sum(len(choice.failed) for choice in row.choices)
        cells = [row.values or "not chosen yet", best, str(failed), f"{row.spent.hours:.2f}"]
        texts = "".join(f"<td>{html(cell)}</td>" for cell in cells)
        texts = texts.replace("<td>", '<td class="text">', 1)
        lines.append(f'<tr><th scope="row" class="text">{html(row.name)}</th>{texts}</tr>')
    return (
        '<div class="wide" tabindex="0" role="region" aria-labelledby="tuning-title"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _chart(tuning: Tuning, rows: list[TunedRow]) -> str:
    """The curves as an SVG picture that needs no script."""
    scale, curves = tuning.metric.scale, {row.name: row.curve() for row in rows}
    values = [value for curve in curves.values() for value in curve]
    axes = _Axes(min(values), max(values), max(map(len, curves.values())))
    title = f"expected best {tuning.metric.name}{scale.unit} of k trials"
    parts = [*_grid_lines(axes, scale), *_curves(axes, curves)]
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">trials k</text>')
    height = HEIGHT + LINE * len(curves) + 6
    return (
        f'<p class="about">{html(title[0].upper() + title[1:])}:</p>'
        f'<svg viewBox="0 0 {WIDTH} {height}" style="max-width:{MAX_WIDTH}px" role="img" '
        f'aria-label="{html(title)}" fill="currentColor">{"".join(parts)}</svg>'
    )


class _Axes(NamedTuple):
    """Limits of the chart: values, and number of trials."""

    low: float
    high: float
    most: int

    def x_of(self, k: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (k - 1) / max(1, self.most - 1)

    def y_of(self, value: float) -> float:
        share = 0.5
        if self.high > self.low:
            share = (value - self.low) / (self.high - self.low)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)


def _grid_lines(axes: _Axes, scale: Scale) -> Iterator[str]:
    """Horizontal lines with their values, and the numbers of trials."""
    span = axes.high - axes.low
    precise = scale.for_deviation(span / NUM_STEPS, axes.high)
    for step in range(NUM_STEPS + 1 if span else 1):
        value = axes.low + span * step / NUM_STEPS
        y = f"{axes.y_of(value):.1f}"
        yield (
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="currentColor" '
            f'stroke-opacity=".15"/><text x="{LEFT - 6}" y="{y}" text-anchor="end" '
            f'dominant-baseline="middle">{html(precise.show(value))}</text>'
        )
    for k in sorted({*range(1, axes.most, -(-axes.most // 8)), axes.most}):
        x = f"{axes.x_of(k):.1f}"
        yield f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{k}</text>'


def _curves(axes: _Axes, curves: dict[str, list[float]]) -> Iterator[str]:
    """A line and a name for each row."""
    for number, (name, curve) in enumerate(curves.items()):
        color, dash = f"var(--c{number % NUM_COLORS})", DASHES[number // NUM_COLORS % len(DASHES)]
        places = [(axes.x_of(k), axes.y_of(value)) for k, value in enumerate(curve, 1)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        style = f'class="curve" style="stroke:{color}" stroke-dasharray="{dash}"'
        x, y = LEFT, HEIGHT + LINE * (number + 1)
        yield (
            f'<polyline points="{points}" {style}><title>{html(name)}</title></polyline>'
            f'<path d="M{x} {y - 4}h{SAMPLE}" {style}/>'
            f'<text x="{x + SAMPLE + 6}" y="{y}">{html(_shorten(name, MAX_NAME))}</text>'
        )


def _shorten(name: str, most: int) -> str:
    """The name, or its beginning with an ellipsis."""
    if len(name) <= most:
        return name
    return f"{name[: most - 1]}\u2026"
