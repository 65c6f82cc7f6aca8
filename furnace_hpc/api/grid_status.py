"""The state of a grid's runs in Python, at one moment."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from furnace_hpc.api.html_table import html_lines, html_table
from furnace_hpc.monitor.forecast.progress import lines_below
from furnace_hpc.monitor.grid_status import StatusLine, overview
from furnace_hpc.monitor.job_cache import JobCache
from furnace_hpc.monitor.render import in_order, plain, plain_cells, summary
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.state import RunState

if TYPE_CHECKING:
    import polars as pl

MAX_ROWS = 100  # in a notebook
FLOATS = ("epochs", "loss", "samples_per_s", "model_tflop_s", "mfu", "data_wait", "left_s")
COLUMNS = ["run", "state", "attempt", "step", "steps", *FLOATS, "job_id", "reason", "last_end"]
COLUMNS += ["log"]


@dataclass(frozen=True, repr=False)
class GridStatus:
    """The state of each run when it was read. A notebook shows it as a table.

    `print(status)` prints what `furnace status` prints.
    """

    folder: GridFolder
    lines: tuple[StatusLine, ...]
    job_cache: JobCache

    @property
    def runs(self) -> "pl.DataFrame":
        """One row per run, with the keys of `furnace status --json`.

        These are run, state, attempt, step, steps, epochs, loss, samples_per_s, model_tflop_s, mfu,
        data_wait, left_s, job_id, reason, last_end and log.
        """
        import polars as pl

        rows = []
        for line in self.lines:
            row = {"epochs": None} | line.as_json() | {"loss": line.loss}  # NaN stays a number
            row.pop("waiting", None)  # its words are in the reason
            rows.append(row)
        schema = dict.fromkeys(FLOATS, pl.Float64) | {"job_id": pl.String}
        frame = pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None)
        return frame.select(COLUMNS)

    @property
    def counts(self) -> dict[str, int]:
        """Number of runs per state: done, running, queued, interrupted, failed, unknown or new."""
        return dict(Counter(line.status.state.value for line in self.lines))

    @property
    def is_done(self) -> bool:
        """Whether all runs are done."""
        return all(line.status.state is RunState.DONE for line in self.lines)

    @property
    def summary(self) -> str:
        """The number of runs in each state, in one line, and whether Slurm does not answer."""
        return summary(self.lines, self.job_cache)

    def __repr__(self) -> str:
        """Name and number of runs per state."""
        return f"<status of {self.folder.path.name}: {self.summary}>"

    def __str__(self) -> str:
        """All runs as text, as in a file that `furnace status` writes."""
        below = lines_below(self.folder, self.lines)
        return "\n".join([*plain(self.lines, self.job_cache), *below])

    def _repr_html_(self) -> str:
        """The runs, those that need the user first, for a notebook."""
        lines = in_order(self.lines)
        cells = plain_cells(lines[:MAX_ROWS])
        right = frozenset(column.name for column in cells if column.right)
        rows = zip(*cells.values(), strict=True)
        table = html_table([column.name for column in cells], list(rows), right)
        more = []
        if len(lines) > MAX_ROWS:
            more = [f"... and {len(lines) - MAX_ROWS:,} more: see .runs"]
        return table + html_lines([*more, self.summary, *lines_below(self.folder, lines)])


def read_status(folder: GridFolder) -> GridStatus:
    """Read the state of each run, with at most one squeue and one sacct."""
    lines, job_cache = overview(folder)
    return GridStatus(folder, tuple(lines), job_cache)
