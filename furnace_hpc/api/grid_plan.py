"""The plan of a grid in Python: what a submission does with each run, and why."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from furnace_hpc.api.calls import quiet
from furnace_hpc.api.html_table import html_lines, html_table
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.launch.planning.plan import Plan
from furnace_hpc.launch.planning.show_plan import MAX_LINES, batch_texts, lines_of, not_done, title

if TYPE_CHECKING:
    import polars as pl

HEADINGS = ("run", "state", "action", "reason")


@dataclass(frozen=True, repr=False)
class GridPlan:
    """What a submission does, or has done, with each run. A notebook shows it as a table."""

    plan: Plan
    messages: tuple[str, ...] = ()
    """What the command would print besides the plan, such as the ids of submitted jobs."""

    @property
    def runs(self) -> "pl.DataFrame":
        """One row per run: run_id, variant, pack, seed, state, action, reason, steps."""
        import polars as pl

        rows = [
            {
                "run_id": run.folder.run_id,
                "variant": run.spec.variant,
                "pack": run.spec.config.data.name,
                "seed": run.spec.config.seed,
                "state": run.status.state.value,
                "action": run.action.value,
                "reason": run.why,
                "steps": run.spec.config.steps,
            }
            for run in self.plan.runs
        ]
        return pl.DataFrame(rows, infer_schema_length=None)

    @property
    def counts(self) -> dict[str, int]:
        """Number of runs per action: start, resume, retry, restart, skip, leave or wait."""
        return dict(self.plan.counts)

    @property
    def lines(self) -> list[str]:
        """The lines that the command prints below the runs: counts, notes and costs."""
        return lines_of(self.plan)

    def batch_scripts(self) -> list[str]:
        """The batch script of each array, and Slurm's answer to a test. Empty without Slurm.

        Raises:
            ConfigError: a job would never start, or be refused.
        """
        with quiet("batch_scripts"):
            return list(batch_texts(self.plan))

    def __repr__(self) -> str:
        """Name, actions and cluster in one line."""
        counts = ", ".join(f"{number:,} {action}" for action, number in sorted(self.counts.items()))
        runs = counted(len(self.plan.runs), "run")
        return f"<plan of {self.plan.grid.name} on {self.plan.profile.name}: {runs} ({counts})>"

    def _repr_html_(self) -> str:
        """The runs that are not done, and the lines below them, for a notebook."""
        runs = not_done(self.plan)
        rows = [
            (run.folder.run_id, run.status.state.value, run.action.value, run.why)
            for run in runs[:MAX_LINES]
        ]
        more = []
        if len(runs) > MAX_LINES:
            more = [f"... and {len(runs) - MAX_LINES:,} more: see .runs"]
        shown = html_table(HEADINGS, rows) if rows else ""
        lines = html_lines([*more, *self.lines, *self.messages])
        return f"{html_lines([title(self.plan)])}{shown}{lines}"
