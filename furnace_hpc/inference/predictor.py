"""Predict with an exported model, from any non-empty subset of its modalities.

    from furnace_hpc.inference import Predictor
    predictor = Predictor.load("exported")
    answer = predictor.predict(text="it is even", image="seven.png")
    answer.tasks["digit"].labels, answer.tasks["digit"].probabilities

B batch, M modalities, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.manifest import MODALITIES
from furnace_hpc.config.preprocessing.record import recorded
from furnace_hpc.config.preprocessing.text import TextNeeds
from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.data.decode.tokenizer import load_tokenizer
from furnace_hpc.data.loading.batches import cut_text, second_texts
from furnace_hpc.data.loading.waveforms import cut_waveforms
from furnace_hpc.data.packing.sample import Array, Values
from furnace_hpc.inference.model_folder import (
    CONFIG,
    Deployed,
    Exported,
    load_network,
    read_exported,
    use_exported_code,
)
from furnace_hpc.inference.preprocess import Preprocessor

# What a damaged config.json can raise while the network is built and run.
_CONFIG_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class TaskAnswer:
    """The answer to one task for one sample."""

    labels: tuple[str, ...]
    """single_label and ordinal: the most probable class. multi_label: all classes above the
    threshold. regression: nothing."""
    probabilities: dict[str, float]
    """Of every class, the most probable first. For a multi-label task they do not sum to 1."""
    threshold: float | None = None
    """multi_label: classes with a higher probability are in `labels`."""
    values: dict[str, float] = field(default_factory=dict)
    """regression: target -> number in original units."""


@dataclass(frozen=True)
class Answer:
    """The answers for one sample."""

    modalities: tuple[str, ...]
    """The modalities of the sample."""
    tasks: dict[str, TaskAnswer]


class Predictor:
    """A loaded exported model."""

    def __init__(
        self,
        exported: Exported,
        model: Deployed,
        preprocessor: Preprocessor,
        device: torch.device,
    ) -> None:
        self.exported, self.preprocessor, self.device = exported, preprocessor, device
        self.model = model.to(device).eval()

    @classmethod
    def load(
        cls, folder: str | Path, device: str | None = None, trust_code: bool = False
    ) -> "Predictor":
        """Load the folder of an exported model.

        Args:
            folder: has config.json.
            device: cpu, cuda, cuda:1, ... None selects a GPU if there is one.
            trust_code: run the folder's own code, if it has any.

        Raises:
            ConfigError: the folder is no exported model, the model is damaged, its own code is not
                trusted, or there is no such device.
        """
        folder = Path(folder)
        exported, torch_device = read_exported(folder), _device(device)
        use_exported_code(folder, exported, trust_code)
        try:
            tokenizer = None
            if "text" in exported.modalities:
                needs = recorded(exported.data, "text")
                assert needs is None or isinstance(needs, TextNeeds)
                num_tokens = exported.data.columns["text"].shape[0]
                tokenizer = load_tokenizer(str(folder), num_tokens, needs)
            model = Deployed(load_network(folder, exported), exported)
            predictor = cls(exported, model, Preprocessor(exported.data, tokenizer), torch_device)
            predictor._predict_zeros()
        except ConfigError:
            raise
        except _CONFIG_ERRORS as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"the network of {folder / CONFIG} does not run "
                f"({type(error).__name__}: {reason}). Export the model again"
            ) from None
        return predictor

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the network."""
        return self.exported.modalities

    def predict(
        self,
        text: str | Sequence[str] | None = None,
        image: str | Path | Array | None = None,
        audio: str | Path | Array | Mapping[str, Any] | None = None,
        numbers: Mapping[str, float | None] | Sequence[float | None] | Array | None = None,
    ) -> Answer:
        """Predict for one sample from the given modalities.

        Args:
            text: raw text. A model of text pairs gets both texts in a list.
            image: an image file, or stored values as an array or a .npy file.
            audio: a sound file, or stored values as an array or a .npy file. A segment of a file is
                `{"path": "talk.wav", "start": 1.5, "end": 4}`, in seconds.
            numbers: name -> number in its own unit, or all numbers in the order of the pack. None
                and NaN are missing numbers, as are names that are left out.

        Raises:
            ConfigError: nothing is given, the network does not use a given modality, or a file
                cannot be used.
        """
        given = {"text": text, "image": image, "audio": audio, "numbers": numbers}
        return self.predict_many([self.read(given)])[0]

    def read(self, row: Mapping[str, Any]) -> Values:
        """Read the stored values of one sample.

        Args:
            row: modality -> text, file, numbers or stored values. A missing key or None means
                absent.

        Raises:
            ConfigError: as for `predict`.
        """
        given = {name: value for name, value in row.items() if value is not None}
        self._check_names(given)
        present = [name in given for name in self.modalities]
        values: Values = {"present": np.array(present, np.uint8)}
        for name in self.modalities:
            if name in given:
                values |= self.preprocessor.read(name, given[name])
            else:
                values |= self.preprocessor.blank(name)
        return values

    def _check_names(self, given: Mapping[str, Any]) -> None:
        for name in given:
            if name not in MODALITIES:
                raise ConfigError(f"unknown key {name!r}; {nearest(name, MODALITIES)}")
            if name not in self.modalities:
                raise ConfigError(
                    f"{name} is given, but this model uses only {' and '.join(self.modalities)}. "
                    f"Leave {name} out"
                )
        if not given:
            raise ConfigError(f"nothing is given. Give any of {', '.join(self.modalities)}")

    def predict_many(self, samples: Sequence[Values]) -> list[Answer]:
        """Predict for several samples from `read`, in one forward pass."""
        logits = self.logits(samples)
        answers = []
        for row, values in enumerate(samples):
            presence = zip(self.modalities, values["present"], strict=True)
            modalities = tuple(name for name, is_present in presence if is_present)
            tasks = {
                task.name: self._task_answer(task, logits[task.name][row])
                for task in self.exported.config.tasks
            }
            answers.append(Answer(modalities, tasks))
        return answers

    def logits(self, samples: Sequence[Values]) -> dict[str, Tensor]:
        """Task -> logits [B, C], fp32, on the CPU. Regression: numbers, fp64."""
        stacked = {
            name: torch.from_numpy(np.stack([values[name] for values in samples]))
            for name in samples[0]
        }
        cut = cut_waveforms(cut_text(stacked))
        columns = {name: column.to(self.device) for name, column in cut.items()}
        inputs, lengths = {}, second_texts(columns)
        for name in self.modalities:
            inputs[name] = columns[name]
            if f"{name}_length" in columns:
                lengths[name] = columns[f"{name}_length"].long()
        with torch.inference_mode():
            logits = self.model(inputs, lengths, columns["present"].bool())
        return {task: values.cpu() for task, values in logits.items()}

    def _predict_zeros(self) -> None:
        """Predict for a sample of zeros, to find shapes and types in the config that do not fit."""
        values: Values = {"present": np.ones(len(self.modalities), np.uint8)}
        for name in self.modalities:
            values |= self.preprocessor.blank(name)
        self.predict_many([values])

    def _task_answer(self, task: TaskConfig, logits_C: Tensor) -> TaskAnswer:
        logits_C = logits_C.double()
        if task.kind == "regression":
            targets = self.exported.data.labels[task.name].classes
            return TaskAnswer((), {}, values=dict(zip(targets, logits_C.tolist(), strict=True)))
        if task.kind in ("single_label", "ordinal"):
            probabilities = self._probabilities(task, logits_C.softmax(0))
            return TaskAnswer(tuple(probabilities)[:1], probabilities)
        probabilities = self._probabilities(task, logits_C.sigmoid())
        threshold = self.exported.threshold(task.name)
        labels = tuple(name for name, p in probabilities.items() if p > threshold)
        return TaskAnswer(labels, probabilities, threshold)

    def _probabilities(self, task: TaskConfig, probability_C: Tensor) -> dict[str, float]:
        """Class -> probability, the most probable first."""
        classes = self.exported.data.labels[task.name].classes
        order = probability_C.argsort(descending=True, stable=True).tolist()
        return {classes[c]: probability_C[c].item() for c in order}


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        return device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {name!r} cannot be used ({reason}). Give cpu, or a GPU of this machine"
        ) from None
