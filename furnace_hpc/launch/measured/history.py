"""Measured costs of the kinds of runs in a plan, from attempts of these and earlier runs."""

from collections.abc import Iterator
from contextlib import suppress

from pydantic import ValidationError

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host.regular_file import IrregularFile, read_regular
from furnace_hpc.launch.measured.kinds import Kind, kind_of, kinds_of
from furnace_hpc.launch.planning.plan import Plan, PlannedRun
from furnace_hpc.monitor.forecast.attempt_times import AttemptTimes, times_of
from furnace_hpc.monitor.forecast.cost import RunCost
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.journal import submissions
from furnace_hpc.runs.records.attempts import Attempt, read_attempts
from furnace_hpc.runs.state import RunState

MAX_RUNS = 12  # measured runs of a kind: more would change little, and each is several files
MAX_OTHERS = 60  # runs of earlier settings whose specs are read


class History:
    """What the runs of a plan have cost so far, by kind. Files are read when they are asked for."""

    def __init__(self, plan: Plan, with_earlier: bool) -> None:
        """Group the runs of a plan.

        Args:
            plan: the plan.
            with_earlier: also read runs of earlier submissions that are not in the plan.
        """
        self._plan, self._with_earlier = plan, with_earlier
        self.kinds = kinds_of(plan.runs, plan.profile)
        self._costs: dict[Kind, RunCost | None] = {}
        self._earlier: dict[Kind, list[RunFolder]] | None = None

    def cost(self, kind: Kind) -> RunCost | None:
        """The cost of runs of a kind. None if none was measured."""
        if kind not in self._costs:
            self._costs[kind] = self._read(kind)
        return self._costs[kind]

    def _read(self, kind: Kind) -> RunCost | None:
        runs = [self._plan.runs[index] for index in self.kinds.get(kind, ())]
        began = [run for run in runs if run.history.attempts]
        # Runs that are done have measured every part.
        began.sort(key=lambda run: run.status.state is not RunState.DONE)
        found = list(self._times(kind, (_folder_of(run) for run in began)))
        if not found and self._with_earlier:
            found = list(self._times(kind, iter(self._others().get(kind, ()))))
        times = [time for of_run in found for time in of_run]
        return RunCost.pooled(times, len(found))

    def _times(self, kind: Kind, folders: Iterator[RunFolder]) -> Iterator[list[AttemptTimes]]:
        """Yield the times of each run that was measured on jobs of this kind."""
        count = 0
        for folder in folders:
            times = []
            for attempt in _attempts(folder):
                if not kind.has_measured(attempt, self._plan.profile):
                    continue
                if read := times_of(folder, attempt):
                    times.append(read)
            if times:
                count += 1
                yield times
            if count == MAX_RUNS:
                return

    def _others(self) -> dict[Kind, list[RunFolder]]:
        """Kind -> runs of earlier submissions that are not in the plan, newest first."""
        if self._earlier is None:
            self._earlier = {}
            for folder in self._unplanned():
                if (spec := _spec_of(folder)) is not None:
                    with suppress(ConfigError):  # it would not fit the profile of today
                        kind = kind_of(spec, self._plan.profile)
                        self._earlier.setdefault(kind, []).append(folder)
        return self._earlier

    def _unplanned(self) -> list[RunFolder]:
        grid = self._plan.folder
        known = {run.folder.run_id for run in self._plan.runs}
        found: dict[str, RunFolder] = {}
        for submission in reversed(submissions(grid)):
            for row in submission.rows:
                folder = grid.run(row.run_id)
                if row.run_id not in known and folder.attempts.is_dir():
                    found.setdefault(row.run_id, folder)
                if len(found) == MAX_OTHERS:
                    return list(found.values())
        return list(found.values())


def _folder_of(run: PlannedRun) -> RunFolder:
    """The folder with the run's files: its own, or that of a finished run of another name."""
    return RunFolder(run.adopts) if run.adopts else run.folder


def _attempts(folder: RunFolder) -> list[Attempt]:
    with suppress(ConfigError):  # a damaged record is reported where the run is used
        return read_attempts(folder)
    return []


def _spec_of(folder: RunFolder) -> RunSpec | None:
    try:
        return RunSpec.model_validate_json(read_regular(folder.spec))
    except (FileNotFoundError, ValidationError, IrregularFile):
        return None
