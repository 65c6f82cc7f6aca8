"""The results of a grid in Python: `furnace_hpc.results("ablation")`, for scripts and notebooks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from furnace_hpc.api.calls import check_lists, key_values, quiet
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.grid import with_settings
from furnace_hpc.config.metrics import Direction
from furnace_hpc.config.parsing.lookup import is_path, names_of, runs_root
from furnace_hpc.tables.output.captions import caption, main_sentences
from furnace_hpc.tables.output.cells import all_cells, headings, lettered
from furnace_hpc.tables.output.escape import html
from furnace_hpc.tables.output.render import WORDS, cell_texts, runs_lines, table_lines
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.tuning.csv_lines import tuning_lines

if TYPE_CHECKING:
    import polars as pl

FRAMES = ("table", "runs", "curves", "trials")  # attributes of `Results`
FOR_PANDAS = ("pandas", "pyarrow")


@dataclass(frozen=True, repr=False)
class Results:
    """The results of a grid. A notebook shows them as the table.

    The frames are polars DataFrames. `to_pandas` returns a pandas DataFrame.
    """

    ablation: Ablation

    @cached_property
    def table(self) -> "pl.DataFrame":
        """One row per row of the table, with the columns of table.csv."""
        return _frame(table_lines(self.ablation))

    @cached_property
    def runs(self) -> "pl.DataFrame":
        """One row per run, with the columns of runs.csv."""
        return _frame(runs_lines(self.ablation))

    @cached_property
    def curves(self) -> "pl.DataFrame":
        """Logged values of all runs: run_id, variant, pack, seed, metric, step, value."""
        import polars as pl

        runs = [run for run in self.ablation.runs if not run.origin]
        names = pl.DataFrame(
            {
                "run": [run.run_id for run in runs],
                "variant": [run.spec.variant for run in runs],
                "pack": [run.draw.pack for run in runs],
                "seed": [run.seed for run in runs],
            },
            schema={"run": pl.String, "variant": pl.String, "pack": pl.String, "seed": pl.Int64},
        )
        points = ["metric", "step", "value"]
        logged = self.ablation.records.frame.select("run", *points)
        found = names.join(logged, on="run", maintain_order="left").explode(points)
        return found.filter(pl.col("metric").is_not_null()).rename({"run": "run_id"})

    @cached_property
    def trials(self) -> "pl.DataFrame":
        """One row per trial of a tuned grid, with the columns of tuning.csv. Empty for others."""
        return _frame(tuning_lines(self.ablation))

    def to_pandas(self, name: Literal["table", "runs", "curves", "trials"]) -> Any:
        """One of the frames as a DataFrame of pandas.

        Args:
            name: `table`, `runs`, `curves` or `trials`.

        Raises:
            ConfigError: pandas or pyarrow is not installed, or there is no such frame.
        """
        if name not in FRAMES:
            raise ConfigError(f"there is no frame {name!r}; {nearest(name, FRAMES)}")
        if missing := [package for package in FOR_PANDAS if find_spec(package) is None]:
            are = "is" if len(missing) == 1 else "are"
            raise ConfigError(
                f"to_pandas needs {' and '.join(FOR_PANDAS)}, and {' and '.join(missing)} {are} "
                f"not installed. Run pip install {' '.join(FOR_PANDAS)}"
            )
        frame: pl.DataFrame = getattr(self, name)
        return frame.to_pandas()

    def __repr__(self) -> str:
        """Name, metric, rows and runs in one line."""
        ablation = self.ablation
        parts = f"{len(ablation.rows)} rows, {len(ablation.runs)} runs"
        if ablation.missing:
            parts += f", {len(ablation.missing)} of them missing"
        return f"<results of {ablation.grid.name}: {ablation.metric.name}, {parts}>"

    def _repr_html_(self) -> str:
        """The table with its caption and notes, for a notebook."""
        ablation = self.ablation
        titles = headings(ablation)
        align = {name: "left" if name in WORDS else "right" for name in titles}
        # a notebook would break `58.0 ± 4.0` and intervals at their spaces
        styles = {
            name: f"text-align:{side}" + ";white-space:nowrap" * (side == "right")
            for name, side in align.items()
        }
        head = "".join(
            f'<th style="text-align:{align[name]}">{html(title)}</th>'
            for name, title in titles.items()
        )
        lines = []
        for cells in all_cells(ablation):
            texts = cell_texts(cells, titles, html, "<strong>{}</strong>", "<sup>{}</sup>")
            columns = "".join(
                f'<td style="{styles[name]}">{text}</td>'
                for name, text in zip(titles, texts, strict=True)
            )
            lines.append(f"<tr>{columns}</tr>")
        notes = "".join(
            f"<li><sup>{letter}</sup> {html(note.text)}</li>" for letter, note in lettered(ablation)
        )
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
            f"<p>{html(' '.join(main_sentences(ablation)))}</p><ul>{notes}</ul>"
            f"<details><summary>How to read this table</summary>"
            f"<p>{html(' '.join(caption(ablation, titles)))}</p></details>"
        )


def load(
    grid: str,
    runs_dir: str | Path | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    metric: str | Sequence[str] | None = None,
    direction: Direction | None = None,
    by: Sequence[str] = (),
    where: Sequence[str] = (),
) -> Results:
    """The results of a submitted grid, as `furnace aggregate` shows them.

    The arguments are those of `furnace_hpc.results`.

    Raises:
        ConfigError: the grid is unknown or has no runs, or an argument is wrong.
    """
    check_lists(by=by, where=where)
    with quiet("results"):
        return _load(grid, runs_dir, key_values("settings", settings), metric, direction, by, where)


def _load(
    grid: str,
    runs_dir: str | Path | None,
    settings: list[str],
    metric: str | Sequence[str] | None,
    direction: Direction | None,
    by: Sequence[str],
    where: Sequence[str],
) -> Results:
    from furnace_hpc.api.grid_table import make_table
    from furnace_hpc.tables.reading.submitted import submitted_grid
    from furnace_hpc.tables.view import View, metrics_of

    root = runs_root(Path(runs_dir) if runs_dir is not None else None)
    _check_name(grid, root)
    submitted, folder = submitted_grid(grid, root)
    submitted = with_settings(submitted, settings)
    first, more_metrics = metrics_of([metric] if isinstance(metric, str) else metric)
    view = View(first, direction, tuple(by), tuple(where), more_metrics)
    return Results(make_table(submitted, folder, view, given_name=grid))


def _check_name(grid: str, root: Path) -> None:
    """Refuse a name that neither a submitted grid nor a grid file has."""
    if is_path(grid):
        return
    submitted = [path.parent.name for path in root.glob("*/grid.yaml")]
    names = {*submitted, *names_of("grid")}
    if grid not in names:
        raise ConfigError(
            f"unknown grid {grid!r} in the folder of runs {root}; {nearest(grid, names)}. "
            f"Give another folder with runs_dir"
        )


def _frame(lines: list[dict[str, Any]]) -> "pl.DataFrame":
    import polars as pl

    return pl.DataFrame(lines, infer_schema_length=None)
