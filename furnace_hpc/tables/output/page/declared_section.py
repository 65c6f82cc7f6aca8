"""The folded section of the report about the declared plan."""

from collections.abc import Iterator

from furnace_hpc.tables.declared_plan import plan_lines
from furnace_hpc.tables.output.escape import html
from furnace_hpc.tables.table import Ablation


def declared_section(ablation: Ablation) -> Iterator[str]:
    """What was declared before the first run, and every change. Nothing for other tools' runs."""
    items = "".join(f"<li>{html(line)}</li>" for line in plan_lines(ablation))
    if items:
        yield f'<details><summary>Declared plan</summary><ul class="notes">{items}</ul></details>'
