"""`report.html`: the table and its figures as one page that loads nothing.

The same runs give the same bytes.

The table can be read without scripts. `page/*.js` sort and filter it, draw the figures, and show
the runs.
"""

from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from string import Template

from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.tables.output.effects import effects_html
from furnace_hpc.tables.output.escape import html
from furnace_hpc.tables.output.page import heatmaps, sections
from furnace_hpc.tables.output.page.declared_section import declared_section
from furnace_hpc.tables.output.page.profiles_section import profiles_section
from furnace_hpc.tables.output.page.script_data import script_data
from furnace_hpc.tables.output.page.tuning_section import tuning_section
from furnace_hpc.tables.output.ranks.section import ranks_section
from furnace_hpc.tables.table import Ablation

PAGE = files("furnace_hpc.tables.output") / "page"
SCRIPTS = ("charts.js", "differences.js", "curves.js", "rows.js", "report.js")
# The sections of the page, in their order. Each yields HTML, or nothing if it has no data.
SECTIONS: tuple[Callable[[Ablation], Iterator[str]], ...] = (
    sections.verdicts,
    sections.table,
    effects_html,
    sections.charts,
    ranks_section,
    profiles_section,
    tuning_section,
    heatmaps.modalities,
    heatmaps.consistency,
    declared_section,
)


def to_html(ablation: Ablation, out: Path | None = None) -> str:
    """The whole report. If `out` is the folder it is written to, logs that exist have links."""
    grid = ablation.grid
    runs, tone = counted(len(ablation.runs), "run"), "good"
    state = f"all {runs} done".removeprefix("all " * (len(ablation.runs) == 1))
    without_value = sum(not run.counts for run in ablation.runs)
    if ablation.missing:
        state, tone = f"{len(ablation.missing):,} of {runs} missing", "bad"
    elif without_value:
        state, tone = f"{without_value:,} of {runs} without a finite value", "bad"
    packs = ""
    if ablation.packs:
        packs = f" · {ablation.unit}s {html(', '.join(ablation.packs))}"
    page = Template((PAGE / "report.html").read_text(encoding="utf-8"))
    return page.substitute(
        name=html(grid.name),
        description=html(grid.description) or html(grid.metric),
        state=state,
        tone=tone,
        seeds=html(", ".join(map(str, grid.seeds))),
        packs=packs,
        metric=html(grid.metric),
        reference=html(grid.reference),
        sections="\n".join(text for section in SECTIONS for text in section(ablation)),
        style=(PAGE / "report.css").read_text(encoding="utf-8"),
        data=script_data(ablation, out),
        script="\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS),
    )
