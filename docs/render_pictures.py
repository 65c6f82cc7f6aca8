"""Render docs/pictures/ with a real browser, in true colour and without scroll bars.

python docs/render_pictures.py --report results/ablation/report.html        pictures/report.png
python docs/render_pictures.py --status ablation --runs-root runs           pictures/status.png

`--status` shows the grid as it is now, so call it while some runs are running. Both options can be
given at once. It needs playwright and Chromium: pip install -e .[dev], apt-get install chromium.
"""

import argparse
import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from furnace_hpc.monitor.grid_status import overview
from furnace_hpc.monitor.render import picture
from furnace_hpc.runs.folder import GridFolder

PICTURES = Path(__file__).parent / "pictures"
WIDTH, HEIGHT = 1280, 900  # of the browser's window
LAST = "#charts > section"  # the picture of a report ends below its first one
COLUMNS = 120  # of the terminal, at most
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Render the pictures that the options name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="a report.html")
    parser.add_argument("--status", metavar="GRID", help="name of a submitted grid")
    parser.add_argument("--runs-root", type=Path, default=Path("runs"), help="[runs]")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder [docs/pictures]")
    options = parser.parse_args()
    if not options.report and not options.status:
        parser.error("nothing to render. Give --report or --status")
    with a_page() as page:
        if options.report:
            draw_report(page, options.report, options.out / "report.png")
        if options.status:
            draw_status(page, options.status, options.runs_root, options.out / "status.png")


@contextmanager
def a_page() -> Iterator[Any]:
    """An empty page of a browser without scroll bars, with two pixels per CSS pixel."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        sys.exit("no chromium on PATH. Install it: apt-get install chromium")
    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--hide-scrollbars", "--force-color-profile=srgb"]
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        size = {"width": WIDTH, "height": HEIGHT}
        page = browser.new_page(viewport=size, device_scale_factor=2, color_scheme="light")
        page.route("http*://**", lambda route: route.abort())  # the fonts of rich's SVG
        yield page
        browser.close()


def draw_report(page: Any, report: Path, to: Path) -> None:
    """Draw the report from its title to the end of its first chart."""
    page.goto(report.resolve().as_uri())
    page.locator(LAST).first.wait_for()
    end = page.locator(LAST).first.evaluate("node => node.getBoundingClientRect().bottom")
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": round(end) + 20}
    page.screenshot(path=to, full_page=True, clip=clip)


def draw_status(page: Any, grid: str, runs_root: Path, to: Path) -> None:
    """Draw what `furnace status --watch` shows, in the window of a terminal."""
    lines, evidence = overview(GridFolder(runs_root / grid))
    if not lines:
        sys.exit(f"grid {grid!r} has no runs under {runs_root}. Give --runs-root")
    texts = picture(lines, evidence, COLUMNS)
    width = max(len(text.plain.rstrip()) for text in texts)
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True)
    for text in texts:
        console.print(text, no_wrap=True)
    page.set_content(console.export_svg(title=f"furnace status --grid {grid} --watch"))
    drawing = page.locator("svg").first
    drawing.evaluate("node => { node.style.width = `${0.7 * node.viewBox.baseVal.width}px`; }")
    drawing.screenshot(path=to, omit_background=True)


if __name__ == "__main__":
    main()
