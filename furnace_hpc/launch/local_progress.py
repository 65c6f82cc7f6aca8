"""The live view of a local queue: a line for the whole grid, and one for each run under way."""

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.launch.plan import Action, Plan, PlannedRun
from furnace_hpc.monitor.columns import PICTURE, STATE, duration
from furnace_hpc.monitor.grid_status import Line, line_of
from furnace_hpc.monitor.render import table
from furnace_hpc.runs.records.metrics import last_record
from furnace_hpc.runs.records.result import read_result
from furnace_hpc.runs.state import RunState, RunStatus, read_status

COLUMNS = [column for column in PICTURE if column is not STATE]  # they all run
QUIET_EVERY_S = 30.0  # without a terminal: one line this often


class Progress:
    """Shows runs, step/total, loss and the time that is left; on a plain stream, lines instead of a picture."""

    def __init__(self, plan: Plan, width: int, device: str) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._total, self._metric = len(plan.to_do), plan.grid.metric
        self._from = {
            run.folder.run_id: 0 if run.action is Action.RESTART else run.status.step
            for run in plan.to_do
        }
        self._steps = sum(
            run.spec.config.steps - self._from[run.folder.run_id] for run in plan.to_do
        )
        self._done = self._failed = 0
        self._steps_done = 0
        self._started_s = time.monotonic()
        self._spoke_s = self._started_s
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self.say(f"{self._total} runs, {width} at a time, on {device}")

    def __enter__(self) -> "Progress":
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

    def say(self, sentence: str) -> None:
        """Print one line that stays."""
        self._console.print(printable(sentence), markup=False)

    def update(self, running: list[tuple[PlannedRun, int]]) -> None:
        """Show what is under way."""
        at = [
            (last_record(run.folder.metrics(attempt)) or {}).get("step", 0)
            for run, attempt in running
        ]
        steps = self._steps_done + sum(
            self._gained(run, step) for (run, _), step in zip(running, at, strict=True)
        )
        if self._console.is_terminal:
            lines = [
                self._line(run, attempt, step)
                for (run, attempt), step in zip(running, at, strict=True)
            ]
            rows = table(lines, COLUMNS, self._console.width, headings=False)
            self._live.update(Group(self._summary(steps), *rows))
        elif time.monotonic() - self._spoke_s > QUIET_EVERY_S:
            self._spoke_s = time.monotonic()
            self.say(self._summary(steps).plain)

    def ended(self, run: PlannedRun, attempt: int) -> None:
        """One run's attempt has ended: say how."""
        status = read_status(run.folder)
        self._steps_done += self._gained(run, status.step)
        name = run.folder.run_id
        if status.state is RunState.DONE:
            self._done += 1
            result = read_result(run.folder)
            value = result.metrics[self._metric] if result else float("nan")
            self.say(f"[{self._done}/{self._total}] {name}: done, {self._metric} {value:.4f}")
        elif status.state is RunState.INTERRUPTED:
            self.say(f"{name}: interrupted after step {status.step}, {status.reason}")
        else:
            self._failed += 1
            self.say(
                f"{name}: {status.state.value}: {status.reason}\n    log: {run.folder.log(attempt, 0)}"
            )

    def _line(self, run: PlannedRun, attempt: int, step: int) -> Line:
        at, says = step or self._from[run.folder.run_id], "" if step else "starting"
        return line_of(
            run.folder, RunStatus(RunState.RUNNING, attempt, at, says), run.spec.config.steps
        )

    def _gained(self, run: PlannedRun, step: int) -> int:
        """Steps beyond where the run stood before; none when it went on from an older checkpoint."""
        return max(0, step - self._from[run.folder.run_id])

    def _summary(self, steps: int) -> Text:
        total = max(1, self._steps)
        elapsed_s = time.monotonic() - self._started_s
        left = duration(elapsed_s / steps * (total - steps)) if steps else "?"
        failed = f", {self._failed} failed" if self._failed else ""
        return Text(
            f"{self._done} of {self._total} runs done{failed}   step {steps:,} of {total:,}   "
            f"{duration(elapsed_s)} elapsed, about {left} left",
            no_wrap=True,
            overflow="ellipsis",
        )
