"""What the results have on tuning: two CSV files, and a section of the report with its chart."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from furnace_hpc.tables.metric import Scale
from furnace_hpc.tables.output.escape import html
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.text import format_value
from furnace_hpc.tables.tuning import TunedRow, Tuning, budget

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 150, 12, 40
COLORS = ("currentColor", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("", "6 3", "2 2", "8 2 2 2")
NUM_STEPS = 5  # between the horizontal lines
LINE = 16  # height of a line of text
SAMPLE = 20  # length of a line beside its name
MAX_NAME = 20  # characters


def tuning_lines(ablation: Ablation) -> list[dict[str, Any]]:
    """Column -> value of each trial, for tuning.csv. Numbers have full precision."""
    if ablation.tuning is None:
        return []
    found = []
    for row in ablation.tuning.rows.values():
        for choice in row.choices:
            for tried in choice.trials:
                found.append(
                    {
                        "variant": row.name,
                        "pack": choice.pack,
                        "trial": tried.trial,
                        **{key: format_value(value) for key, value in tried.values.items()},
                        "metric": choice.metric,
                        **{
                            f"seed_{seed}": value
                            for seed, value in zip(choice.seeds, tried.results, strict=True)
                        },
                        "mean": tried.mean,
                        "chosen": tried.trial == choice.trial,
                        "failures": "; ".join(tried.failures),
                    }
                )
    return found


def curve_lines(ablation: Ablation) -> list[dict[str, Any]]:
    """Column -> value of each point of the curves, for tuning_curve.csv."""
    if ablation.tuning is None:
        return []
    return [
        {
            "variant": row.name,
            "metric": ablation.tuning.metric.name,
            "trials": k,
            "expected_best": value,
        }
        for row in ablation.tuning.rows.values()
        for k, value in enumerate(row.curve(), 1)
    ]


def tuning_section(ablation: Ablation) -> Iterator[str]:
    """The section of the report. Nothing if the grid does not tune."""
    tuning = ablation.tuning
    if tuning is None:
        return
    yield (
        '<section aria-labelledby="tuning-title"><h2 id="tuning-title">Tuning</h2>'
        f"<p>Each row: {html(budget(tuning))}.</p>"
    )
    yield _table(tuning)
    drawn = [row for row in tuning.rows.values() if row.curve()]
    if drawn:
        yield _chart(tuning, drawn)
        yield (
            "<p>Expected best of k trials, from the trials of each row (Dodge et al. 2019). If a "
            "curve still rises at its end, more trials may help that row. The best of many "
            "validation results is optimistic, so compare rows by the table above.</p>"
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
        '<div class="wide"><table class="main">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _chart(tuning: Tuning, rows: list[TunedRow]) -> str:
    """The curves as an SVG picture that needs no script."""
    scale, curves = tuning.metric.scale, {row.name: row.curve() for row in rows}
    values = [value for curve in curves.values() for value in curve]
    axes = _Axes(min(values), max(values), max(map(len, curves.values())))
    title = f"expected best {tuning.metric.name}{scale.unit} of k trials"
    parts = [*_grid_lines(axes, scale), *_curves(axes, curves)]
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">{html(title)}</text>')
    height = max(HEIGHT, TOP + LINE * (len(curves) + 1))
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" style="max-width:{WIDTH}px" role="img" '
        f'aria-label="{html(title)}" '
        f'font-size="11" fill="currentColor">{"".join(parts)}</svg>'
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
        color = COLORS[number % len(COLORS)]
        dash = DASHES[number // len(COLORS) % len(DASHES)]
        places = [(axes.x_of(k), axes.y_of(value)) for k, value in enumerate(curve, 1)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        style = f'fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"'
        x, y = WIDTH - RIGHT + 10, TOP + 12 + LINE * number
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
