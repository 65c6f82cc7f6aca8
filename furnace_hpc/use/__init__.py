"""Room `use`: from a checkpoint to answers: exported models, and the predictor that loads one."""

from furnace_hpc.use.exported import Exported
from furnace_hpc.use.predictor import Answer, Predictor, TaskAnswer

__all__ = ["Answer", "Exported", "Predictor", "TaskAnswer"]
