"""Draw the history of compare.py, results/history.jsonl.

    python benchmarks/draw_history.py

Each panel is a measure, and each point a comparison: new / base on a logarithmic axis, with its
interval. It needs matplotlib.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HISTORY = HERE / "results" / "history.jsonl"
PICTURE = HERE.parent / "docs" / "pictures" / "history.svg"
COLUMNS, MOST = 2, 24  # panels side by side, and newest comparisons that are drawn
WIDTH, HEIGHT = 4.6, 1.5  # of a panel, in inches
COLOURS = {"slower": "#b3261e", "faster": "#1b7f3b", "": "#555555"}
Point = tuple[int, dict[str, Any]]  # number of the comparison, row


def main() -> None:
    """Draw the history."""
    draw(HISTORY, PICTURE)


def draw(history: Path, picture: Path) -> None:
    """Draw the newest comparisons of a history into an SVG file.

    The same history gives the same bytes with one version of matplotlib.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    comparisons = [json.loads(line) for line in history.read_text().splitlines()][-MOST:]
    panels = points(comparisons)
    settings = {"svg.hashsalt": "history", "svg.fonttype": "none", "font.size": 8}
    with matplotlib.rc_context(settings):
        lines = -(-len(panels) // COLUMNS)
        size = (WIDTH * COLUMNS, HEIGHT * lines + 0.6)
        figure, axes = pyplot.subplots(
            lines, COLUMNS, figsize=size, sharex=True, squeeze=False, layout="constrained"
        )
        for panel, (title, found) in zip(axes.flat, panels.items(), strict=False):
            _draw_panel(panel, title, found)
        for panel in axes.flat[len(panels) :]:
            panel.set_axis_off()
        names = [f"{one['commit'][:7]}\n: {one['base'][:7]}" for one in comparisons]
        for panel in axes[-1]:
            panel.set_xticks(range(len(names)), names, rotation=45, fontsize=6)
            panel.set_xlim(-0.5, len(names) - 0.5)
        figure.supylabel("time of the commit / time of its base")
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, metadata={"Date": None})
        pyplot.close(figure)


def points(comparisons: list[dict[str, Any]]) -> dict[str, list[Point]]:
    """The points of each panel. CPU time is drawn if there is any, because it varies less."""
    found: dict[str, list[Point]] = {}
    for number, comparison in enumerate(comparisons):
        rows = [row for row in comparison["rows"] if "ratio" in row]
        with_cpu = {row["measure"] for row in rows if row["clock"] == "cpu"}
        for row in rows:
            if row["clock"] == "cpu" or row["measure"] not in with_cpu:
                title = f"{row['measure']} ({row['clock']} time)"
                found.setdefault(title, []).append((number, row))
    return found


def colour(row: dict[str, Any]) -> str:
    """Red if the commit was found slower, green if faster."""
    if row["low"] > 1:
        return COLOURS["slower"]
    return COLOURS["faster" if row["high"] < 1 else ""]


def _draw_panel(panel: Any, title: str, found: list[Point]) -> None:
    panel.axhline(1, color="#999999", linewidth=0.8)
    for number, row in found:
        below, above = row["ratio"] - row["low"], row["high"] - row["ratio"]
        ends = [[below], [above]]
        panel.errorbar(number, row["ratio"], ends, fmt="o", markersize=3, color=colour(row))
    panel.set_yscale("log")
    ends = [row[end] for _, row in found for end in ("low", "high")]
    low, high = min([*ends, 0.9]), max([*ends, 1.1])
    panel.set_ylim(low / 1.05, high * 1.05)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 0.8, 1, 1.25, 2, 5, 10) if low / 1.05 <= tick <= high]
    panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.set_title(title, loc="left", fontsize=8)


if __name__ == "__main__":
    main()
