"""Room `use`: from a checkpoint to answers: exported models, and the predictor that loads one."""

from furnace_hpc.inference.model_folder import Exported
from furnace_hpc.inference.predictor import Answer, Predictor, TaskAnswer

__all__ = ["Answer", "Exported", "Predictor", "TaskAnswer"]
