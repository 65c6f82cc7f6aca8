"""Stop a run after its first steps, and time an evaluation, for `furnace submit --canary`.

The run saves as after a stop signal and resumes later, so its numbers do not change. Evaluations
are timed after that, when nothing of the run is kept any more.
"""

import time
from dataclasses import dataclass

from furnace_hpc.engine.context import RunContext
from furnace_hpc.engine.evaluation import evaluate
from furnace_hpc.engine.ranks.stop import Stopped
from furnace_hpc.host.end_reasons import CANARY
from furnace_hpc.runs.folder import write_json
from furnace_hpc.runs.records.attempts import read_attempt


@dataclass(frozen=True)
class Canary:
    """When an attempt stops as a canary. It never does if `last_step` is None."""

    context: RunContext
    last_step: int | None

    @classmethod
    def of_attempt(cls, context: RunContext, step: int) -> "Canary":
        """The canary of an attempt that begins after a step."""
        steps = read_attempt(context.folder, context.attempt).stop_after_steps
        return cls(context, None if steps is None else step + steps)

    def signal(self, step: int) -> str | None:
        """Return a name in the place of a stop signal's if the run stops at this boundary."""
        if self.last_step is None or step < self.last_step:
            return None
        return CANARY

    def measure(self, stop_signal: str | None) -> None:
        """Collective. Time evaluations of a canary that has saved, and write `canary.json`."""
        if stop_signal != CANARY:
            return
        context = self.context
        try:
            times = [_seconds(context, with_subsets) for with_subsets in (False, True)]
        except Stopped:
            return
        if context.processes.is_rank_zero:
            sizes = {split: reader.num_samples for split, reader in context.readers.items()}
            measured = {
                "attempt": context.attempt,
                "evaluation_s": times[0],
                "with_subsets_s": times[1],
                "val_samples": sizes["val"],
                "test_samples": sizes["test"],
                "unix_s": time.time(),
            }
            write_json(context.folder.canary, measured)


def _seconds(context: RunContext, with_subsets: bool) -> float:
    """Collective. Seconds of an evaluation of the validation split."""
    since_s = time.perf_counter()
    evaluate(context, "val", with_subsets=with_subsets)
    return time.perf_counter() - since_s
