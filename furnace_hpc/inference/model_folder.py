"""An exported model on disk: one folder that needs neither the run, nor its data, nor a hub.

    config.json         everything that is not a weight: what was trained, on what, how well, and where it comes from
    model.safetensors   fp32 weights by the network's own names
    tokenizer.json      of a network that reads text
    model.pt2           where asked for: the whole computation for other programs (torch.export)

None of them holds a pickle. `config.json` has size and hash of the others.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from furnace_hpc.config.base import Config
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest
from furnace_hpc.config.parsing.utf8_path import utf8_path
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.data.loading.batches import standardised
from furnace_hpc.host.regular_file import IrregularFile, read_regular
from furnace_hpc.model.encoders import InputShapes
from furnace_hpc.model.network import FusionModel
from furnace_hpc.runs.records.checkpoint_files import describe

CONFIG, WEIGHTS, TOKENIZER, PROGRAM = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "model.pt2",
)
# thousands of classes and scores take less; stops what is none of ours
MAX_CONFIG_BYTES = 64_000_000
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Provenance(Config):
    """Where the weights come from."""

    grid: str
    run_id: str
    variant: str
    seed: int
    step: int = Field(description="optimizer steps that made these weights")
    steps: int = Field(description="optimizer steps of the run")
    is_selected: bool = Field(
        description="this is the step that validation chose, and that the run's result is of"
    )
    world_size: int = Field(description="processes that wrote the checkpoint")
    zero_stage: int = Field(description="ZeRO stage of the checkpoint")
    commit: str | None = Field(
        description="git commit of the code that trained; none: the run is not done"
    )
    code_hash: str = Field(
        description="hash of the sources that decide numbers, of the code that trained"
    )
    exported_by: str = Field(description="the same hash of the code that exported")
    versions: dict[str, str] = Field(description="libraries that trained")
    parameters_sha256: str = Field(
        description="SHA-256 of the fp32 parameters, in name order, as in result.json"
    )
    compared: str = Field(description="what the exported network's own answers were compared with")


class Program(Config):
    """How far the program of torch.export is from the network, over every subset of the modalities."""

    tolerance: float = Field(
        description="difference of logits that is accepted, relative to the largest one or to 1"
    )
    difference: float = Field(description="the largest that was seen")


class Exported(Config):
    """`config.json`."""

    # Scores of a class that never occurs are NaN.
    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    format: Literal[1] = 1
    config: TrainConfig
    data: Manifest = Field(
        description="of the packed data: labels, statistics, preprocessing, fingerprint; no files"
    )
    architectures: dict[str, dict[str, Any]] = Field(
        description="modality -> transformers' configuration of an encoder that began with trained weights"
    )
    thresholds: dict[str, float] = Field(
        description="multi-label task -> probability above which it says yes, tuned on validation; none: 0.5"
    )
    scores: dict[str, float] = Field(
        description="<split>/<task>/<metric> of these weights, as the run measured them"
    )
    provenance: Provenance
    program: Program | None = None
    files: dict[str, tuple[int, str]] = Field(
        default={}, description="file -> size in bytes, XXH3-128"
    )

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the network sees."""
        return self.config.model.modalities

    def threshold(self, task: str) -> float:
        """The probability above which a multi-label task says yes."""
        return self.thresholds.get(task, 0.5)

    def network(self) -> FusionModel:
        """The network with random weights, in fp32."""
        shapes = InputShapes.of(self.data, self.architectures)
        num_classes = {
            task.name: len(self.data.labels[task.name].classes) for task in self.config.tasks
        }
        return FusionModel(self.config.model, shapes, num_classes, self.config.loss)


class Deployed(nn.Module):
    """The network and the standardisation before it: stored values in, fp32 logits out, in the run's own precision."""

    def __init__(self, network: FusionModel, exported: Exported) -> None:
        super().__init__()
        self.network = network.to(DTYPES[exported.config.deepspeed.precision]).eval()
        for name, statistics in exported.data.statistics.items():
            self.register_buffer(f"{name}_mean", torch.tensor(statistics.mean, dtype=torch.float32))
            self.register_buffer(f"{name}_std", torch.tensor(statistics.std, dtype=torch.float32))

    def forward(
        self, inputs: dict[str, Tensor], lengths: dict[str, Tensor], present_BM: Tensor
    ) -> dict[str, Tensor]:
        """Task -> logits [B, C].

        Args:
            inputs: text ids [B, T]; image [B, C, H, W] and audio [B, C, T] as they are stored, before standardisation.
            lengths: valid tokens or frames of text and audio [B].
            present_BM: whether each sample has each modality; what is absent may hold anything.
        """
        ready = {
            name: values.long()
            if name == "text"
            else standardised(
                values, self.get_buffer(f"{name}_mean"), self.get_buffer(f"{name}_std")
            )
            for name, values in inputs.items()
        }
        logits = self.network(ready, lengths, present_BM)["logits"]
        return {task: values.float() for task, values in logits.items()}


def read_exported(folder: Path) -> Exported:
    """Read `config.json`, and check that every file is the one it describes.

    Raises:
        ConfigError: this is no exported model, or it is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        is_run = (folder / "spec.json").exists() or (folder / "manifest.json").exists()
        hint = (
            f"`furnace export {folder} --out DIR` makes one"
            if is_run
            else "give the folder that export made"
        )
        raise ConfigError(f"{str(folder)!r} is no exported model (it has no {CONFIG}): {hint}")
    try:
        exported = Exported.model_validate_json(read_regular(path, MAX_CONFIG_BYTES))
    except IrregularFile as error:
        raise ConfigError(
            f"{path} {error.strerror}: it is no config of an exported model"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{path} is no config of an exported model ({where}: {first['msg']}): export again"
        ) from None
    for name, described in exported.files.items():
        if (
            Path(name).name != name
            or not (folder / name).is_file()
            or tuple(describe(folder / name)) != described
        ):
            raise ConfigError(
                f"{folder / name} is not the file that {CONFIG} describes: copy it again, or export again"
            )
    if WEIGHTS not in exported.files:
        raise ConfigError(f"{path} names no {WEIGHTS}: export again")
    return exported


def load_network(folder: Path, exported: Exported) -> FusionModel:
    """The network with its weights, in fp32.

    Raises:
        ConfigError: the weights are not this network's.
    """
    network = exported.network()
    try:
        with utf8_path(folder) as named:
            network.load_state_dict(load_file(named / WEIGHTS))
    except (RuntimeError, SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{folder / WEIGHTS} cannot be loaded ({reason}): it was exported by other code"
        ) from None
    return network
