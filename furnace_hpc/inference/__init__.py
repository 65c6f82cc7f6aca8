"""Export a checkpoint as a model folder, load it and predict with it.

It imports `engine` and the packages below. Only commands import it. `Predictor` is the interface
for Python programs.
"""

from furnace_hpc.inference.model_folder import Exported
from furnace_hpc.inference.predictor import Answer, Predictor, TaskAnswer

__all__ = ["Answer", "Exported", "Predictor", "TaskAnswer"]
