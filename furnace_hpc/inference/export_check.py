"""Compare an exported model with the predictions that its run wrote."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import TEXT_SECOND
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.packing.sample import Values
from furnace_hpc.inference.predictor import Predictor
from furnace_hpc.inference.source import Checkpoint
from furnace_hpc.inference.torch_export import relative_difference
from furnace_hpc.model.scores import mean_prediction
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.records.predictions import read_arrays

COMPARED_ROWS = 64  # test samples whose logits are compared with those of the run
# Other batches, threads and processors round differently. Another network differs far more.
OWN_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
NOT_COMPARED = "not compared with the run's own"


@dataclass(frozen=True)
class Logits:
    """Logits that a run wrote for its first test samples."""

    sample_ids: np.ndarray
    tasks: dict[str, Tensor]
    """Task -> logits [N, C]."""


def compare_logits(predictor: Predictor, checkpoint: Checkpoint, pack: Path) -> str:
    """Compare the exported network's logits with those that the run wrote. Return the result.

    Raises:
        ConfigError: they differ by more than rounding, so this code computes another network.
    """
    path = checkpoint.folder.predictions("test")
    if not checkpoint.is_selected or not path.is_file():
        return f"{NOT_COMPARED}, because the run has none for this step"
    try:
        columns = open_columns(pack).split("test")
        count = min(COMPARED_ROWS, len(columns["present"]))
        samples = [
            [stored_row(predictor, columns, row, frame) for row in range(count)]
            for frame in _frames(predictor, checkpoint)
        ]
        own = _own_logits(path, checkpoint, count)
    except (ConfigError, OSError, ValueError, LookupError, EOFError) as error:
        return f"{NOT_COMPARED} ({path.name}: {' '.join(str(error).split())})"
    if not np.array_equal(own.sample_ids, columns["sample_id"][:count]):
        return f"{NOT_COMPARED}, because the test samples here have another order"
    worst = 0.0
    for task, logits in _mean_logits(predictor, checkpoint, samples).items():
        worst = max(worst, relative_difference(logits, own.tasks[task]))
    if not worst <= OWN_TOLERANCE[checkpoint.config.deepspeed.precision]:
        raise ConfigError(
            f"the exported network's logits differ from the run's own by {worst:.2g} of the "
            f"largest. Export with the code that trained it (hash {checkpoint.facts.code_hash}, "
            f"this code has {code_hash()})"
        )
    agreement = "equal bit for bit"
    if worst > 0:
        agreement = f"within {worst:.1e} of the largest logit"
    return f"{agreement} with the run's own for {count} test samples"


def _own_logits(path: Path, checkpoint: Checkpoint, count: int) -> Logits:
    """Read the logits that the run wrote of its first `count` test samples."""
    tasks = [task.name for task in checkpoint.config.tasks]
    ids, *arrays = read_arrays(path, ["sample_id", *(f"logits.{task}" for task in tasks)])
    logits = [torch.from_numpy(array[:count]) for array in arrays]
    return Logits(ids[:count], dict(zip(tasks, logits, strict=True)))


def _mean_logits(
    predictor: Predictor, checkpoint: Checkpoint, samples: list[list[Values]]
) -> dict[str, Tensor]:
    """Task -> logits [N, C] of the mean prediction over frames. `samples` has a list per frame."""
    frames = [predictor.logits(of_frame) for of_frame in samples]
    if len(frames) == 1:
        return frames[0]
    mean = {}
    for task in checkpoint.config.tasks:
        logits_FNC = torch.stack([logits[task.name] for logits in frames])
        mean[task.name] = mean_prediction(logits_FNC, task.kind)
    return mean


def _frames(predictor: Predictor, checkpoint: Checkpoint) -> tuple[int | None, ...]:
    """The frames of a clip that the run's predictions are a mean of. None is the middle frame."""
    frames = predictor.exported.data.image_frames
    is_mean = checkpoint.config.evaluation.frames == "mean"
    if "image" in predictor.modalities and frames and is_mean:
        return tuple(range(frames))
    return (None,)


def stored_row(
    predictor: Predictor, columns: dict[str, np.ndarray], row: int, frame: int | None = None
) -> Values:
    """Return one row of a split as input of the predictor.

    For a clip, `frame` is the index of the frame. None is the middle frame.
    """
    data = predictor.exported.data
    bits = [data.modalities.index(name) for name in predictor.modalities]
    values: Values = {"present": np.asarray(columns["present"][row])[bits]}
    for name in predictor.modalities:
        value = np.asarray(columns[name][row])
        if name == "image" and data.image_frames:
            if frame is None:
                frame = len(value) // 2
            value = value[frame]
        values[name] = value
        if f"{name}_length" in columns:
            values[f"{name}_length"] = np.asarray(columns[f"{name}_length"][row])
        if name == "text" and TEXT_SECOND in columns:
            values[TEXT_SECOND] = np.asarray(columns[TEXT_SECOND][row])
    return values
