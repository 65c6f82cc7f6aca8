"""Show the progress of a local queue: one line for the grid, and one for each active run."""

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.launch.planning.plan import Action, Plan, PlannedRun
from furnace_hpc.monitor.columns import PICTURE, STATE, duration
from furnace_hpc.monitor.grid_status import StatusLine, line_of
from furnace_hpc.monitor.render import table
from furnace_hpc.runs.records.metrics import last_record
from furnace_hpc.runs.records.result import read_result
from furnace_hpc.runs.state import RunState, RunStatus, read_status

COLUMNS = [column for column in PICTURE if column is not STATE]  # all of them run
LINE_EVERY_S = 30.0  # without a terminal


class QueueProgress:
    """Show runs, step, loss and remaining time. Without a terminal it prints lines now and then."""

    def __init__(self, plan: Plan, width: int, device: str) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._total, self._metric = len(plan.to_do), plan.grid.metric
        self._from = {run.folder.run_id: _first_step(run) for run in plan.to_do}
        steps = sum(run.spec.config.steps for run in plan.to_do)
        self._steps = steps - sum(self._from.values())
        self._done = self._failed = 0
        self._steps_done = 0
        self._started_s = time.monotonic()
        self._printed_s = self._started_s
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self.print(f"{counted(self._total, 'run')}, {width} at a time, on {device}")

    def __enter__(self) -> "QueueProgress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def print(self, sentence: str) -> None:
        """Print one line that stays."""
        self._console.print(printable(sentence), markup=False)

    def update(self, running: list[tuple[PlannedRun, int]]) -> None:
        """Show the active runs and their attempts."""
        at = [(run, attempt, _last_step(run, attempt)) for run, attempt in running]
        steps = self._steps_done + sum(self._gained(run, step) for run, _, step in at)
        if self._console.is_terminal:
            lines = [self._line(run, attempt, step) for run, attempt, step in at]
            rows = table(lines, COLUMNS, self._console.width, headings=False)
            self._live.update(Group(self._summary(steps), *rows))
        elif time.monotonic() - self._printed_s > LINE_EVERY_S:
            self._printed_s = time.monotonic()
            self.print(self._summary(steps).plain)

    def ended(self, run: PlannedRun, attempt: int) -> None:
        """Print how an attempt ended."""
        status = read_status(run.folder)
        self._steps_done += self._gained(run, status.step)
        name = run.folder.run_id
        if status.state is RunState.DONE:
            self._done += 1
            result = read_result(run.folder)
            value = result.metrics[self._metric] if result else float("nan")
            self.print(f"[{self._done}/{self._total}] {name}: done, {self._metric} {value:.4f}")
        elif status.state is RunState.INTERRUPTED:
            self.print(f"{name}: interrupted after step {status.step}, {status.reason}")
        else:
            self._failed += 1
            log = run.folder.log(attempt, 0)
            self.print(f"{name}: {status.state.value}: {status.reason}\n    log: {log}")

    def _line(self, run: PlannedRun, attempt: int, step: int) -> StatusLine:
        status = RunStatus(RunState.RUNNING, attempt, step, "")
        if not step:
            first = self._from[run.folder.run_id]
            status = RunStatus(RunState.RUNNING, attempt, first, "starting")
        config = run.spec.config
        return line_of(run.folder, status, config.steps, config.epochs)

    def _gained(self, run: PlannedRun, step: int) -> int:
        """Return the new steps of a run. 0 while it repeats steps after an older checkpoint."""
        return max(0, step - self._from[run.folder.run_id])

    def _summary(self, steps: int) -> Text:
        total = max(1, self._steps)
        elapsed_s = time.monotonic() - self._started_s
        left = duration(elapsed_s / steps * (total - steps)) if steps else "?"
        failed = f", {self._failed} failed" if self._failed else ""
        return Text(
            f"{self._done} of {counted(self._total, 'run')} done{failed}   "
            f"step {steps:,} of {total:,}   {duration(elapsed_s)} elapsed, about {left} left",
            no_wrap=True,
            overflow="ellipsis",
        )


def _first_step(run: PlannedRun) -> int:
    return 0 if run.action is Action.RESTART else run.status.step


def _last_step(run: PlannedRun, attempt: int) -> int:
    record = last_record(run.folder.metrics(attempt)) or {}
    return int(record.get("step", 0))
