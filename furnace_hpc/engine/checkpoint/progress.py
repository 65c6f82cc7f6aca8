"""The position of a run: its step, its best step, and when it ends."""

import math
from dataclasses import dataclass

from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.engine.metering.usage import Usage


@dataclass
class Progress(Usage):
    """The position of a run, and what its steps have used. Every checkpoint contains it.

    The usage is that of the steps up to the last boundary at which training paused.
    """

    step: int = 0
    best_step: int = 0
    best_value: float | None = None
    evaluated: int = 0
    """The last step that was evaluated. A resumed run makes an evaluation that a stop has ended."""
    peak_value: float | None = None
    """Best value of evaluation.metric, by which early stopping decides. Higher is better."""
    without_improvement: int = 0
    """Evaluations since `peak_value`."""

    def is_evaluation_due(self, config: TrainConfig) -> bool:
        """Whether this step needs an evaluation that has not been made yet."""
        if self.evaluated == self.step:
            return False
        return self.step == config.steps or self.step % config.evaluation.every == 0

    def note_value(self, value: float) -> None:
        """Count the evaluations without improvement. `value` is negative if lower is better."""
        if is_better(value, self.peak_value):
            self.peak_value, self.without_improvement = value, 0
        else:
            self.without_improvement += 1

    def is_stopped_early(self, config: TrainConfig) -> bool:
        """Whether early stopping has ended the training before its last step."""
        rule = config.early_stopping
        if rule is None or self.step == config.steps:
            return False
        return self.without_improvement >= rule.patience

    def is_at_end(self, config: TrainConfig) -> bool:
        """Whether no step is left to train."""
        return self.step == config.steps or self.is_stopped_early(config)


def is_better(value: float, best: float | None) -> bool:
    """Whether a value exceeds the best so far. Ties keep the earlier step. Any value beats NaN."""
    return best is None or value > best or math.isnan(best)
