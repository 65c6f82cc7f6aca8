"""Write the files of a table to `results/<grid>/`."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from furnace_hpc.host.durable_files import replace_file
from furnace_hpc.runs.folder import write_atomically
from furnace_hpc.tables.large.rendered import rendered_rows
from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.render import (
    to_csv,
    to_curve_csv,
    to_effects_csv,
    to_markdown,
    to_ranks_csv,
    to_runs_csv,
    to_tuning_csv,
)
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.table import SOURCE_FILE, Ablation


def _source_json(ablation: Ablation) -> str:
    """The files behind the table of another tool's runs. Empty for a grid."""
    if ablation.source is None:
        return ""
    return json.dumps({"inputs": ablation.source.inputs}, indent=1) + "\n"


OPTIONAL_WRITERS: dict[str, Callable[[Ablation], str]] = {  # files that a table may lack
    "effects.csv": to_effects_csv,
    "ranks.csv": to_ranks_csv,
    "tuning.csv": to_tuning_csv,
    "tuning_curve.csv": to_curve_csv,
    SOURCE_FILE: _source_json,
}
WRITERS: dict[str, Callable[[Ablation], str]] = {
    "runs.csv": to_runs_csv,
    "table.csv": to_csv,
    "table.md": to_markdown,
    "table.tex": to_latex,
    "report.html": to_html,
}


def write_results(ablation: Ablation, out: Path, figures: bool = True) -> list[Path]:
    """Write the tables and figures to the folder `out`, and return the files."""
    files = []
    writers = WRITERS | {"report.html": partial(to_html, out=out)}
    for name, write in writers.items():
        write_atomically(out / name, write(ablation))
        files.append(out / name)
    for name, write in OPTIONAL_WRITERS.items():
        if text := write(ablation):
            write_atomically(out / name, text)
            files.append(out / name)
        else:
            (out / name).unlink(missing_ok=True)
    rendered_rows(ablation).store()
    if figures:
        files += _write_figures(ablation, out / "figures")
    return files


def _write_figures(ablation: Ablation, folder: Path) -> list[Path]:
    """Write all figures. Remove those of an earlier call that the table no longer has."""
    from furnace_hpc.tables.output.figures import FORMS, NAMES, draw_figures

    contents = draw_figures(ablation)
    folder.mkdir(parents=True, exist_ok=True)
    for name in {f"{name}.{form}" for name in NAMES for form in FORMS} - contents.keys():
        (folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        replace_file(folder / name, content, durable=False)
    return [folder / name for name in contents]
