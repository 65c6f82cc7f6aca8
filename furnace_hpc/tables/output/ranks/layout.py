"""The layout of the diagram of critical differences (Demsar 2006), without a way of drawing it.

Mean ranks are on an axis with the best on the left. The better half of the methods has its names on
the left, the other half on the right. Lines connect a name with its rank. Bars join methods whose
mean ranks differ by no more than the critical difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from furnace_hpc.tables.large.drawn import MAX_DRAWN
from furnace_hpc.tables.output.escape import one_line
from furnace_hpc.tables.statistics.ranks import Ranks
from furnace_hpc.tables.statistics.significance import format_p
from furnace_hpc.tables.text import list_names, text_width, wrap

MAX_TICKS = 9
MAX_LINES = 3  # of a name, without its rank
PAD = 3.0  # of a bar beyond the ranks that it joins
MOST_OF_WIDTH = 0.3  # names on one side have at most this share of the width


class Name(NamedTuple):
    """A method's name beside the axis."""

    lines: list[str]  # with the mean rank
    rank_x: float
    y: float  # of the line to the rank; the text is in the middle of it
    is_left: bool


class Line(NamedTuple):
    """A horizontal line."""

    x0: float
    x1: float
    y: float


@dataclass(frozen=True)
class Diagram:
    """Positions in a picture whose origin is the upper left corner."""

    width: float
    height: float
    line_height: float
    axis: Line
    ticks: list[tuple[float, str]]
    difference: Line  # length of the critical difference, above the axis
    difference_text: str
    bars: list[Line]
    names: list[Name]


def has_diagram(ranks: Ranks | None) -> bool:
    """Whether there is a diagram.

    None without a test, or if the test shows no difference. A picture of more than MAX_DRAWN
    methods would not be readable.
    """
    if ranks is None or ranks.shown_difference is None:
        return False
    return len(ranks.ranks) <= MAX_DRAWN


def lay_out(ranks: Ranks, width: float, letter: float, line_height: float) -> Diagram:
    """The positions of all parts.

    Args:
        ranks: the ranks, with a test that shows a difference.
        width: of the picture.
        letter: width of a letter.
        line_height: height of a line of text.
    """
    assert ranks.shown_difference is not None
    mean_ranks, count = ranks.mean_ranks, len(ranks.ranks)
    best_first = sorted(mean_ranks, key=lambda name: mean_ranks[name])
    letters = max(8, int(MOST_OF_WIDTH * width / letter))
    texts = {name: _text(name, mean_ranks[name], letters) for name in best_first}
    left, right = best_first[: (count + 1) // 2], best_first[(count + 1) // 2 :][::-1]
    sides = [max(text_width(line) for n in side for line in texts[n]) for side in (left, right)]
    low, high = sides[0] * letter + 10, width - sides[1] * letter - 10

    def x_of(rank: float) -> float:
        return low + (high - low) * (rank - 1) / (count - 1)

    axis_y = 3.2 * line_height
    spans = [(x_of(mean_ranks[g[0]]), x_of(mean_ranks[g[-1]])) for g in ranks.groups]
    bars = _bars(spans, axis_y + 0.7 * line_height, 0.55 * line_height)
    top = max([axis_y, *(bar.y for bar in bars)]) + 0.6 * line_height
    names, heights = list[Name](), list[float]()
    for side in (left, right):
        y = top
        for name in side:
            half = len(texts[name]) * line_height / 2
            y += half
            names.append(Name(texts[name], x_of(mean_ranks[name]), y, side is left))
            y += half + 0.25 * line_height
        heights.append(y)
    return Diagram(
        width=width,
        height=max(heights),
        line_height=line_height,
        axis=Line(low, high, axis_y),
        ticks=[(x_of(rank), str(rank)) for rank in _ticks(count, (high - low) / letter)],
        difference=Line(x_of(1), x_of(1 + ranks.shown_difference), 1.3 * line_height),
        difference_text=f"CD {ranks.shown_difference:.2f}",
        bars=bars,
        names=names,
    )


def title(ranks: Ranks) -> str:
    """What is on the axis."""
    return f"mean ranks over {len(ranks.data_sets)} data sets, 1 is best"


def bars_sentence(ranks: Ranks) -> str:
    """What the bars mean, in one line."""
    if not ranks.groups:
        return "no bar: all mean ranks differ by more than CD"
    return "bars join methods whose mean ranks differ by no more than CD"


def describe(ranks: Ranks) -> str:
    """The content of the diagram as text, for readers who do not see it."""
    best_first = sorted(ranks.mean_ranks.items(), key=lambda item: item[1])
    listed = ", ".join(f"{one_line(name)} {rank:.2f}" for name, rank in best_first)
    text = f"{title(ranks)}: {listed}. Critical difference {ranks.shown_difference:.2f}. "
    if not ranks.groups:
        return f"{text}No bar joins methods"
    groups = "; ".join(" and ".join(map(one_line, group)) for group in ranks.groups)
    return f"{text}Joined by a bar: {groups}"


def sentences(ranks: Ranks) -> list[str]:
    """What the diagram shows, and what it does not."""
    assert ranks.friedman_p is not None
    found = [
        f"Critical-difference diagram (Demsar 2006): {title(ranks)}. The Friedman test shows that "
        f"the ranks differ (p {format_p(ranks.friedman_p)}).",
        f"CD: critical difference of two mean ranks (Nemenyi's test, 5 %, all pairs), "
        f"{ranks.shown_difference:.2f}.",
    ]
    if not ranks.groups:
        found.append("No bar joins methods: all mean ranks differ by more than CD.")
    elif len(ranks.groups[0]) == len(ranks.ranks):
        found.append(
            "One bar joins all methods: Nemenyi's test does not show which of them differ."
        )
    else:
        found.append(
            "A bar joins methods whose mean ranks differ by no more than CD. That is no proof that "
            "they are equal. Methods that share no bar differ."
        )
    if ranks.left_out:
        found.append(f"Sanity rows without a rank: {list_names(ranks.left_out)}.")
    return found


def _text(name: str, mean_rank: float, letters: int) -> list[str]:
    """The lines of a name, with its mean rank at the end."""
    *lines, last = wrap(one_line(name), letters, MAX_LINES)
    rank = f"({mean_rank:.2f})"
    if text_width(f"{last} {rank}") <= letters:
        return [*lines, f"{last} {rank}"]
    return [*lines, last, rank]


def _bars(spans: Sequence[tuple[float, float]], top: float, step: float) -> list[Line]:
    """One bar per span, on the uppermost level on which it touches no other."""
    ends, found = list[float](), list[Line]()
    for first, last in spans:
        x0, x1 = first - PAD, last + PAD
        level = next((n for n, end in enumerate(ends) if end + PAD < x0), len(ends))
        ends[level : level + 1] = [x1]
        found.append(Line(x0, x1, top + step * level))
    return found


def _ticks(count: int, letters: float) -> list[int]:
    """Whole ranks from 1, as many as fit in a line of `letters`."""
    most = max(2, min(MAX_TICKS, int(letters / 3)))
    step = next(n for n in (1, 2, 5, 10, 20, 50) if (count - 1) / n < most)
    return [*range(1, count + 1, step)]
