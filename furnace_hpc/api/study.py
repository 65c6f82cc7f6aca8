"""One grid in Python: plan it, submit it, follow its runs, and read its results."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from furnace_hpc.api.calls import check_lists, key_values, quiet
from furnace_hpc.api.frames import Results, load
from furnace_hpc.api.grid_plan import GridPlan
from furnace_hpc.api.grid_status import GridStatus, read_status
from furnace_hpc.api.html_table import html_lines, html_table
from furnace_hpc.api.waiting import wait_for_runs
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import Grid, load_grid, with_settings
from furnace_hpc.config.grids.row import GridRow
from furnace_hpc.config.metrics import Direction
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.launch.grids.background import own_queue, start_queue
from furnace_hpc.launch.grids.cancel_grid import cancel_grid
from furnace_hpc.launch.grids.options import Options, read_options
from furnace_hpc.launch.grids.submit_grid import Hooks, submit_grid
from furnace_hpc.launch.planning.show_plan import MAX_LINES, choose_profile
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.notices.outbox import send_missing
from furnace_hpc.runs.submitted import set_options

if TYPE_CHECKING:
    import polars as pl


class Study:
    """A grid that was read and checked: its rows, runs, plan, jobs and results.

    `furnace_hpc.load_grid` returns it. Methods raise ConfigError, or its subclass UnavailableError
    if Slurm does not answer. They print nothing except progress.

    Attributes:
        grid: the content of the grid's file, with the settings.
        rows: the rows of the table, with their configs.
        folder: the folder of the runs.
    """

    grid: Grid
    rows: tuple[GridRow, ...]
    folder: GridFolder

    def __init__(
        self,
        grid: str | Path,
        settings: Mapping[str, Any] | Sequence[str] = (),
        runs_dir: str | Path | None = None,
        data_dir: str | Path | None = None,
    ) -> None:
        self._given = str(grid)
        self._settings = key_values("settings", settings)
        self._runs_dir = None if runs_dir is None else Path(runs_dir)
        self._data_dir = None if data_dir is None else Path(data_dir)
        with quiet("load_grid"):
            self.grid = with_settings(load_grid(self._given), self._settings)
            self.rows = tuple(expand_rows(self.grid))
        self.folder = GridFolder(runs_root(self._runs_dir) / self.grid.name)

    @property
    def name(self) -> str:
        """Name of the grid, and of the folders of its runs and results."""
        return self.grid.name

    @property
    def runs(self) -> "pl.DataFrame":
        """One row per run of the table: variant, pack, seed. `plan().runs` has ids and states."""
        import polars as pl

        rows = [
            {"variant": row.name, "pack": pack, "seed": seed}
            for row in self.rows
            for pack in row.packs
            for seed in self.grid.seeds
        ]
        return pl.DataFrame(rows)

    def plan(
        self,
        cluster: str = "auto",
        *,
        variants: Sequence[str] = (),
        seeds: Iterable[int] = (),
        retry: str | Sequence[str] = "",
        new_code: bool = False,
        adopt: bool = True,
        resume_with: Mapping[str, Any] | Sequence[str] = (),
        canary: bool = False,
    ) -> GridPlan:
        """What a submission would do with each run, and why. Nothing is written or submitted.

        It is `furnace submit --dry-run`.

        Args:
            cluster: name of a profile in slurm/clusters/, `local`, or `auto`: this Slurm cluster,
                else this machine.
            variants: only these rows.
            seeds: only these seeds.
            retry: failed runs to retry: `failed`, or reasons.
            new_code: start runs of older code again at step 0.
            adopt: use finished runs of the same config in another row or grid.
            resume_with: resume runs with another `deepspeed` file or `micro_batch_size`.
            canary: first measure one run of each kind for a few steps.

        Raises:
            ConfigError: an argument is wrong, or the data or a row has a problem.

        Examples:
            >>> study.plan("local").counts
            {'start': 3}
        """
        with quiet("plan") as lines:
            options, rows = self._options(
                cluster, variants, seeds, retry, new_code, adopt, resume_with, canary, dry_run=True
            )
            return GridPlan(submit_grid(options, rows, Hooks()).plan, tuple(lines))

    def submit(
        self,
        cluster: str = "auto",
        *,
        wait: bool = False,
        progress: bool = True,
        variants: Sequence[str] = (),
        seeds: Iterable[int] = (),
        retry: str | Sequence[str] = "",
        new_code: bool = False,
        adopt: bool = True,
        resume_with: Mapping[str, Any] | Sequence[str] = (),
        canary: bool = False,
    ) -> GridPlan:
        """Start the runs that are not done, as `furnace submit --yes` does.

        On Slurm the jobs are submitted. Without Slurm a queue starts on this machine, in a process
        that continues when Python ends. `queue.log` in the submission's folder has its output.

        Args:
            cluster: as in `plan`.
            wait: return when no run is running or queued. Ctrl-C stops waiting: Slurm jobs
                continue, and a queue on this machine saves checkpoints and stops.
            progress: with `wait`, show the runs in a notebook, or a line on stderr.
            variants: as in `plan`.
            seeds: as in `plan`.
            retry: as in `plan`.
            new_code: as in `plan`.
            adopt: as in `plan`.
            resume_with: as in `plan`.
            canary: as in `plan`.

        Returns:
            The plan that was carried out. Its `messages` have the ids of jobs.

        Raises:
            ConfigError: as `plan`, sbatch refused a job, or another process submits the grid.
            UnavailableError: Slurm does not answer.

        Examples:
            >>> study.submit("local", wait=True)
            <plan of smoke on local: 3 runs (3 start)>
        """
        with quiet("submit") as lines:
            options, rows = self._options(
                cluster, variants, seeds, retry, new_code, adopt, resume_with, canary
            )
            if options.runs_here:
                answer = start_queue(options, rows)
                assert answer.plan is not None
                made = GridPlan(answer.plan, answer.notices)
            else:
                made = GridPlan(submit_grid(options, rows, Hooks()).plan, tuple(lines))
        if wait:
            self._wait_or_stop(options.runs_here, progress)
        return made

    def _wait_or_stop(self, runs_here: bool, progress: bool) -> None:
        """Wait. Ctrl-C stops the queue on this machine, as it does with the command."""
        try:
            self.wait(progress)
        except KeyboardInterrupt:
            if runs_here and (queue := own_queue(self.folder)):
                queue.stop()
            raise
        if not runs_here:  # a follow-up job may have had no network
            for line in send_missing(self.folder):
                if progress:
                    print(line, file=sys.stderr)

    def _options(
        self,
        cluster: str,
        variants: Sequence[str],
        seeds: Iterable[int],
        retry: str | Sequence[str],
        new_code: bool,
        adopt: bool,
        resume_with: Mapping[str, Any] | Sequence[str],
        canary: bool,
        dry_run: bool = False,
    ) -> tuple[Options, list[GridRow]]:
        check_lists(variants=variants, seeds=seeds)
        return read_options(
            self.grid,
            choose_profile(cluster),
            variants=variants,
            seeds=seeds,
            retry=retry if isinstance(retry, str) else ",".join(retry),
            new_code=new_code,
            adopt=adopt,
            resume_with=key_values("resume_with", resume_with),
            canary=canary,
            dry_run=dry_run,
            runs_dir=self._runs_dir,
            data_dir=self._data_dir,
        )

    def status(self) -> GridStatus:
        """The state of each run now, as `furnace status` shows it.

        Raises:
            ConfigError: the grid was never submitted.

        Examples:
            >>> study.status().counts
            {'done': 2, 'running': 1}
        """
        with quiet("status"):
            self._check_submitted()
            return read_status(self.folder)

    def wait(self, progress: bool = True) -> GridStatus:
        """Wait until no run is running or queued, and return the last status.

        Ctrl-C stops waiting. Runs continue, on Slurm and in a queue on this machine.

        Args:
            progress: show the runs in a notebook, or a line on stderr.

        Raises:
            ConfigError: the grid was never submitted, or its queue on this machine had an error.
        """
        with quiet("wait"):
            self._check_submitted()
            status = wait_for_runs(self.folder, progress)
            if queue := own_queue(self.folder):
                queue.check()
        return status

    def cancel(self, variants: Sequence[str] = ()) -> list[str]:
        """Stop all jobs of the grid, running and waiting, or its queue on this machine.

        Ranks save a checkpoint if they get the time. The next `submit` resumes from it.

        Args:
            variants: only these rows. A queue on this machine can only be stopped whole.

        Returns:
            The lines that `furnace cancel` prints.

        Raises:
            ConfigError: the grid was never submitted, or there is no such row.
            UnavailableError: Slurm does not answer.
        """
        check_lists(variants=variants)
        with quiet("cancel") as lines:
            self._check_submitted()
            return [*cancel_grid(self.folder, list(variants)).lines(), *lines]

    def results(
        self,
        *,
        metric: str | Sequence[str] | None = None,
        direction: Direction | None = None,
        by: Sequence[str] = (),
        where: Sequence[str] = (),
    ) -> Results:
        """The table of the grid with these settings. The arguments are those of `results`.

        Raises:
            ConfigError: the grid has no runs, or an argument is wrong.
        """
        settings = self.grid.settings
        return load(self._given, self._runs_dir, settings, metric, direction, by, where)

    def _check_submitted(self) -> None:
        if not self.folder.all_submissions():
            raise ConfigError(
                f"grid {self.name!r} has no submissions in {self.folder.path}. Call submit first, "
                f"or give load_grid the runs_dir that it was submitted with"
            )

    def __repr__(self) -> str:
        """Name, size and metric in one line."""
        return f"<grid {self.name}: {self._size()}, {self.grid.metric}>"

    def _size(self) -> str:
        packs = ""
        if len(self.grid.packs) > 1:
            packs = f" x {counted(len(self.grid.packs), 'pack')}"
        rows, seeds = counted(len(self.rows), "row"), counted(len(self.grid.seeds), "seed")
        return f"{rows}{packs} x {seeds}"

    def _repr_html_(self) -> str:
        """The rows and what they change, for a notebook."""
        grid = self.grid
        shown = self.rows[:MAX_LINES]
        rows = [(row.name, ", ".join(set_options(row.overrides)[1::2])) for row in shown]
        more = [f"... and {len(self.rows) - MAX_LINES:,} more"] if shown != self.rows else []
        settings = [f"settings: {', '.join(self._settings)}"] if self._settings else []
        lines = [f"grid {grid.name}: {self._size()}, {grid.metric}", grid.description, *settings]
        table = html_table(("row", "change to the base"), rows)
        return html_lines(filter(None, lines)) + table + html_lines(more)
