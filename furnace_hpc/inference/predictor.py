"""Answers of an exported model, for any non-empty subset of its modalities.

    from furnace_hpc.inference import Predictor
    predictor = Predictor.load("exported")
    answer = predictor.predict(text="it is even", image="seven.png")
    answer.tasks["digit"].labels, answer.tasks["digit"].probabilities

B batch, M modalities, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.manifest import MODALITIES
from furnace_hpc.data.decode.tokenizer import load_tokenizer
from furnace_hpc.data.loading.batches import cut_text
from furnace_hpc.data.packing.sample import Array, Values
from furnace_hpc.inference.model_folder import (
    CONFIG,
    Deployed,
    Exported,
    load_network,
    read_exported,
)
from furnace_hpc.inference.preprocess import Recipe


@dataclass(frozen=True)
class TaskAnswer:
    """What one task says of one sample."""

    labels: tuple[str, ...]
    """single_label: the most probable class. multi_label: all classes above the threshold, or none."""
    probabilities: dict[str, float]
    """Every class, the most probable first; of a multi-label task each for itself."""
    threshold: float | None = None
    """multi_label: the probability above which it is a yes."""


@dataclass(frozen=True)
class Answer:
    """What the network says of one sample."""

    modalities: tuple[str, ...]
    """What it has seen of it."""
    tasks: dict[str, TaskAnswer]


class Predictor:
    """An exported model, loaded."""

    def __init__(
        self, exported: Exported, model: Deployed, recipe: Recipe, device: torch.device
    ) -> None:
        self.exported, self.recipe, self.device = exported, recipe, device
        self.model = model.to(device).eval()

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> "Predictor":
        """Load the folder that export made.

        Args:
            folder: with config.json.
            device: cpu, cuda, cuda:1, ...; none: a GPU where there is one.

        Raises:
            ConfigError: it is no exported model, is damaged, or there is no such device.
        """
        folder = Path(folder)
        exported, where, tokenizer = read_exported(folder), _device(device), None
        try:
            if "text" in exported.modalities:
                tokenizer = load_tokenizer(str(folder), exported.data.columns["text"].shape[0])
            model = Deployed(load_network(folder, exported), exported)
            predictor = cls(exported, model, Recipe(exported.data, tokenizer), where)
            predictor._try_out()
        except ConfigError:
            raise
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{folder / CONFIG} describes no network that answers ({type(error).__name__}: {reason}): export again"
            ) from None
        return predictor

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the network can see."""
        return self.exported.modalities

    def predict(
        self,
        text: str | None = None,
        image: str | Path | Array | None = None,
        audio: str | Path | Array | None = None,
    ) -> Answer:
        """Answer for one sample, from what is given of it.

        Args:
            text: as it is.
            image: an image file; a .npy file or an array is taken as the pack stores it.
            audio: a sound file, or the same.

        Raises:
            ConfigError: nothing is given, the network does not see what is given, or a file cannot be used.
        """
        return self.predict_many([self.read({"text": text, "image": image, "audio": audio})])[0]

    def read(self, row: Mapping[str, Any]) -> Values:
        """The stored values of one sample: modality -> text or file; None, or no such key, is absent.

        Raises:
            ConfigError: as `predict`.
        """
        given = {name: value for name, value in row.items() if value is not None}
        for name in given:
            if name not in MODALITIES:
                raise ConfigError(f"unknown key {name!r}; {nearest(name, MODALITIES)}")
            if name not in self.modalities:
                raise ConfigError(
                    f"{name} is given, and this network sees {' and '.join(self.modalities)} alone"
                )
        if not given:
            raise ConfigError(
                f"nothing is given: give one at least of {', '.join(self.modalities)}"
            )
        values: Values = {
            "present": np.array([name in given for name in self.modalities], np.uint8)
        }
        for name in self.modalities:
            values |= (
                self.recipe.read(name, given[name]) if name in given else self.recipe.blank(name)
            )
        return values

    def predict_many(self, samples: Sequence[Values]) -> list[Answer]:
        """Answers for several samples that `read` made, in one forward pass."""
        logits = self.logits(samples)
        return [
            Answer(
                tuple(
                    name
                    for name, there in zip(self.modalities, values["present"], strict=True)
                    if there
                ),
                {
                    task.name: self._answer(task.name, task.kind, logits[task.name][row])
                    for task in self._tasks
                },
            )
            for row, values in enumerate(samples)
        ]

    def logits(self, samples: Sequence[Values]) -> dict[str, Tensor]:
        """Task -> logits [B, C], fp32, on the CPU."""
        columns = {
            name: torch.from_numpy(np.stack([values[name] for values in samples]))
            for name in samples[0]
        }
        columns = {name: column.to(self.device) for name, column in cut_text(columns).items()}
        inputs = {name: columns[name] for name in self.modalities}
        lengths = {
            name: columns[f"{name}_length"].long()
            for name in self.modalities
            if f"{name}_length" in columns
        }
        with torch.inference_mode():
            logits = self.model(inputs, lengths, columns["present"].bool())
        return {task: values.cpu() for task, values in logits.items()}

    def _try_out(self) -> None:
        """Answer for a sample of zeros: what a config says of shapes and types may not fit together."""
        values: Values = {"present": np.ones(len(self.modalities), np.uint8)}
        for name in self.modalities:
            values |= self.recipe.blank(name)
        self.predict_many([values])

    @property
    def _tasks(self) -> tuple[Any, ...]:
        return self.exported.config.tasks

    def _answer(self, task: str, kind: str, logits_C: Tensor) -> TaskAnswer:
        classes = self.exported.data.labels[task].classes
        single = kind == "single_label"
        probability_C = logits_C.double().softmax(0) if single else logits_C.double().sigmoid()
        order = probability_C.argsort(descending=True, stable=True).tolist()
        probabilities = {classes[c]: probability_C[c].item() for c in order}
        if single:
            return TaskAnswer(tuple(probabilities)[:1], probabilities)
        threshold = self.exported.threshold(task)
        return TaskAnswer(
            tuple(c for c, p in probabilities.items() if p > threshold), probabilities, threshold
        )


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        return device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(
            f"device {name!r}: {str(error).splitlines()[0]}: give cpu, or a GPU that is here"
        ) from None
