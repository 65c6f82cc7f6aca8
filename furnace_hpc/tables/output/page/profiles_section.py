"""The section of the report with performance profiles, as pictures that need no script."""

import math
from collections.abc import Iterator

from furnace_hpc.tables.large.drawn import drawn_sentence, drawn_table
from furnace_hpc.tables.metric import Scale
from furnace_hpc.tables.output.escape import html
from furnace_hpc.tables.output.profiles import Line, Panels, profile_panels, profile_sentences
from furnace_hpc.tables.table import Ablation

WIDTH, HEIGHT = 330, 210
LEFT, RIGHT, TOP, BOTTOM = 34, 12, 40, 26
COLORS = ("var(--c0)", "var(--c1)")  # of the reference and of the row
DASHES = ("5 3", "")
MAX_TICKS = 5


def profiles_section(ablation: Ablation) -> Iterator[str]:
    """The section of the report. Nothing if no row has enough runs."""
    found = profile_panels(drawn_table(ablation))
    if found is None:
        return
    unit = ablation.metric.scale.unit
    sentences = profile_sentences(ablation)
    if sentence := drawn_sentence(ablation):
        sentences.append(f"Shown: {sentence}.")
    about = html(" ".join(sentences))
    pictures = "".join(_picture(panel, found, ablation) for panel in found.panels)
    yield (
        '<section class="of-grid" aria-labelledby="profiles-title">'
        '<h2 id="profiles-title">Performance profiles</h2>'
        f'<p class="about">{html(found.title + unit)}</p>'
        f'<div class="profiles">{pictures}</div><p class="about">{about}</p></section>'
    )


def _picture(panel: list[Line], found: Panels, ablation: Ablation) -> str:
    """One panel as SVG."""
    names = " and ".join(line.name for line in panel)
    parts = [*_axes(found, ablation.metric.scale)]
    for number, line in enumerate(panel):
        at = number if len(panel) > 1 else 1
        parts += _curve(line, found, COLORS[at], DASHES[at])
        parts.append(
            f'<path d="M{LEFT} {10 + 15 * number}h20" class="curve" style="stroke:{COLORS[at]}" '
            f'stroke-dasharray="{DASHES[at]}"/><text x="{LEFT + 26}" y="{14 + 15 * number}">'
            f"{html(line.name)}</text>"
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" style="max-width:{WIDTH}px" role="img" '
        f'aria-label="performance profile: {html(names)}">{"".join(parts)}</svg>'
    )


def _axes(found: Panels, scale: Scale) -> Iterator[str]:
    """Lines at shares of 0, .5 and 1, and thresholds below them."""
    for share in (0.0, 0.5, 1.0):
        y = f"{_y_of(share):.1f}"
        yield (
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" class="grid-line"/>'
            f'<text x="{LEFT - 5}" y="{y}" text-anchor="end" dominant-baseline="middle">'
            f"{share:g}</text>"
        )
    low, high = found.limits
    for shown in round_numbers(scale.factor * low, scale.factor * high):
        yield (
            f'<text x="{_x_of(shown / scale.factor, found):.1f}" y="{HEIGHT - 8}" '
            f'text-anchor="middle">{html(f"{shown:g}")}</text>'
        )


def round_numbers(low: float, high: float) -> list[float]:
    """Two to five multiples of 1, 2 or 5 times a power of ten in a range, for an axis."""
    power = 10.0 ** math.floor(math.log10(high - low)) / 10
    for step in (2 * power, 5 * power, 10 * power, 20 * power):
        first, last = math.ceil(low / step), math.floor(high / step)
        if last - first < MAX_TICKS:
            break
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _curve(line: Line, found: Panels, color: str, dash: str) -> Iterator[str]:
    """The band and the line of one row."""
    xs = [_x_of(value, found) for value in line.thresholds]
    upper = list(zip(xs, line.high, strict=True))
    lower = list(zip(xs, line.low, strict=True))[::-1]
    yield f'<polygon points="{_points(upper + lower)}" class="band" style="fill:{color}"/>'
    points = _points(list(zip(xs, line.shares, strict=True)))
    yield (
        f'<polyline points="{points}" class="curve" style="stroke:{color}" '
        f'stroke-dasharray="{dash}"><title>{html(line.name)}</title></polyline>'
    )


def _points(corners: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{_y_of(share):.1f}" for x, share in corners)


def _x_of(value: float, found: Panels) -> float:
    low, high = found.limits
    return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)


def _y_of(share: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)
