"""The folder of an exported model. It needs neither the run, nor its data, nor a hub.

    config.json         config of the run, properties of the data, scores and provenance
    model.safetensors   fp32 weights under the network's parameter names
    tokenizer.json      if the network reads text
    model.pt2           with `--format torch_export`: the computation for other programs
    model.onnx          with `--format onnx`: the same for ONNX (model.onnx.data if it is large)
    own_code/           the user's own network, fusion or encoder. It runs only if it is trusted

No file contains a pickle. `config.json` has the size and hash of the other files.
"""

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from furnace_hpc.config.base import Config
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import MODALITIES, Manifest, Statistics, waveform_of
from furnace_hpc.config.own_code.loading import use_folder
from furnace_hpc.config.own_code.references import CLASSES, references
from furnace_hpc.config.own_code.sources import LEFT_OUT, OWN_CODE, content_hash, files_of
from furnace_hpc.config.parsing.format_number import check_not_newer
from furnace_hpc.config.parsing.utf8_path import utf8_path
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.data.loading.batches import standardised
from furnace_hpc.data.loading.numbers import prepared_numbers
from furnace_hpc.data.loading.targets import TargetScale, target_scales
from furnace_hpc.data.loading.waveforms import prepared_waveforms
from furnace_hpc.host.regular_file import IrregularFile, read_regular
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.network import Network
from furnace_hpc.model.own_code.network import make_network
from furnace_hpc.runs.records.checkpoint_files import describe

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
PROGRAM = "model.pt2"
ONNX = "model.onnx"
ONNX_DATA = "model.onnx.data"
FILES = (CONFIG, WEIGHTS, TOKENIZER, PROGRAM, ONNX, ONNX_DATA)
MAX_CONFIG_BYTES = 64_000_000  # a config with thousands of classes and scores is smaller
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
        description="whether validation selected this step, which the run's result describes"
    )
    world_size: int = Field(description="processes that wrote the checkpoint")
    zero_stage: int = Field(description="ZeRO stage of the checkpoint")
    commit: str | None = Field(
        description="git commit of the training code, or null if the run is not done"
    )
    code_hash: str = Field(
        description="hash of the sources of the training code that affect numbers"
    )
    exported_by: str = Field(description="the same hash of the code that exported")
    versions: dict[str, str] = Field(description="versions of the libraries used in training")
    parameters_sha256: str = Field(
        description="SHA-256 of the fp32 parameters, in name order, as in result.json"
    )
    compared: str = Field(description="result of the comparison with the run's own outputs")


class Program(Config):
    """Difference between a program (torch.export, ONNX) and the network, over all subsets."""

    tolerance: float = Field(
        description="accepted difference of logits, relative to the largest logit or to 1"
    )
    difference: float = Field(description="largest measured difference")

    def describe(self) -> str:
        """Return the result of the comparison in one line."""
        return (
            f"logits of all modality subsets differ by at most {self.difference:.1g} "
            f"(accepted: {self.tolerance:.1g})"
        )


class Exported(Config):
    """Content of `config.json`."""

    # The scores of a class that never occurs are NaN.
    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    format: Literal[1] = 1
    config: TrainConfig
    data: Manifest = Field(
        description="labels, statistics, preprocessing and fingerprint of the packed data"
    )
    architectures: dict[str, dict[str, Any]] = Field(
        description="modality -> transformers' configuration, if the encoder started from trained "
        "weights"
    )
    thresholds: dict[str, float] = Field(
        description="multi-label task -> probability threshold, tuned on validation; 0.5 if missing"
    )
    scores: dict[str, float] = Field(
        description="<split>/<task>/<metric> of these weights, measured by the run"
    )
    provenance: Provenance
    program: Program | None = None
    onnx: Program | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="of model.onnx, which computes in fp32",
    )
    files: dict[str, tuple[int, str]] = Field(
        default={}, description="file -> size in bytes, XXH3-128"
    )

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the network."""
        return self.config.model.modalities

    def threshold(self, task: str) -> float:
        """Classes of a multi-label task with a higher probability are in its answer."""
        return self.thresholds.get(task, 0.5)

    def network(self) -> Network:
        """Build the network with random weights, in fp32."""
        shapes = InputShapes.of(self.data, self.architectures)
        labels = self.data.labels
        num_classes = {task.name: len(labels[task.name].classes) for task in self.config.tasks}
        ordinal = self.config.ordinal_tasks
        return make_network(self.config.model, shapes, num_classes, self.config.loss, ordinal)


class Deployed(nn.Module):
    """The network with standardisation, from stored values to fp32 logits.

    The network computes in the run's precision. Numbers of a regression are in original units, and
    in fp64.
    """

    def __init__(self, network: Network, exported: Exported) -> None:
        super().__init__()
        self.waveform = waveform_of(exported.data)
        self.network = network.to(DTYPES[exported.config.deepspeed.precision]).eval()
        for name, statistics in exported.data.statistics.items():
            if name in MODALITIES:
                dtype = torch.float64 if name == "numbers" else torch.float32
                self._keep(name, statistics, dtype)
        tasks = tuple(task.name for task in exported.config.tasks)
        self.regressions = tuple(target_scales(exported.data, tasks))
        for task in self.regressions:
            self._keep(f"label_{task}", exported.data.statistics[f"label.{task}"], torch.float64)

    def _keep(self, name: str, statistics: Statistics, dtype: torch.dtype) -> None:
        self.register_buffer(f"{name}_mean", torch.tensor(statistics.mean, dtype=dtype))
        self.register_buffer(f"{name}_std", torch.tensor(statistics.std, dtype=dtype))

    def forward(
        self, inputs: dict[str, Tensor], lengths: dict[str, Tensor], present_BM: Tensor
    ) -> dict[str, Tensor]:
        """Return task -> logits [B, C], or numbers [B, C] of a regression.

        Args:
            inputs: stored values before standardisation. text: ids [B, T]. image: [B, C, H, W].
                audio: [B, C, T], or waveforms [B, T]. numbers: [B, N], NaN if missing. Values of an
                absent modality may be anything.
            lengths: valid tokens, frames or samples of text and audio [B]. text_second, for text
                pairs: the place of the second text's first token [B].
            present_BM: whether each sample has each modality.
        """
        prepared = {name: self._prepared(name, values, lengths) for name, values in inputs.items()}
        logits = self.network(prepared, lengths, present_BM)["logits"]
        return {task: self._answer(task, values.float()) for task, values in logits.items()}

    def _answer(self, task: str, values: Tensor) -> Tensor:
        if task not in self.regressions:
            return values
        name = f"label_{task}"
        scale = TargetScale(self.get_buffer(f"{name}_mean"), self.get_buffer(f"{name}_std"))
        return scale.original(values)

    def _prepared(self, name: str, values: Tensor, lengths: dict[str, Tensor]) -> Tensor:
        if name == "text":
            return values.long()
        if name == "audio" and self.waveform:
            return prepared_waveforms(values, lengths["audio"], self.waveform.normalises)
        mean, std = self.get_buffer(f"{name}_mean"), self.get_buffer(f"{name}_std")
        if name == "numbers":
            return prepared_numbers(values, mean, std)
        return standardised(values, mean, std)


def read_exported(folder: Path) -> Exported:
    """Read `config.json` and check the size and hash of all other files.

    Raises:
        ConfigError: the folder is no exported model, or the model is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise _not_exported(folder)
    try:
        exported = Exported.model_validate_json(read_regular(path, MAX_CONFIG_BYTES))
    except IrregularFile as error:
        raise ConfigError(
            f"{path} {error.strerror}. Give the folder made by `furnace export`"
        ) from None
    except ValidationError as error:
        check_not_newer(path, error)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{path} is not the config of an exported model ({where}: {first['msg']}). "
            f"Export the model again"
        ) from None
    for name, described in exported.files.items():
        if not _is_as_described(folder, name, described):
            raise ConfigError(
                f"{folder / name} is missing or differs from its size and hash in {CONFIG}. "
                f"Copy it again, or export the model again"
            )
    if WEIGHTS not in exported.files:
        raise ConfigError(f"{path} names no {WEIGHTS}. Export the model again")
    return exported


def _not_exported(folder: Path) -> ConfigError:
    is_run = (folder / "spec.json").exists() or (folder / "manifest.json").exists()
    fix = "Give the folder made by `furnace export`"
    if is_run:
        fix = f"Export it first: `furnace export {folder} --out DIR`"
    return ConfigError(f"{str(folder)!r} is not an exported model: it has no {CONFIG}. {fix}")


def _is_as_described(folder: Path, name: str, described: tuple[int, str]) -> bool:
    if Path(name).name != name:  # a path out of the folder
        return False
    path = folder / name
    return path.is_file() and tuple(describe(path)) == described


def needs_code(config: TrainConfig) -> bool:
    """Whether the network of a config has modules of own code. Losses and metrics do not count."""
    return any(reference.kind in CLASSES for reference in references(config))


def use_exported_code(folder: Path, exported: Exported, trust_code: bool) -> None:
    """Let this process import the own code of an exported model.

    Raises:
        ConfigError: the code is not trusted, or has changed since the export.
    """
    if not needs_code(exported.config):
        return
    code = folder / OWN_CODE
    files = files_of(code)
    if not trust_code:
        raise ConfigError(
            f"{folder} has code of its own ({', '.join(files) or 'which is missing'}), which would "
            f"run as you. Read it in {code}, and add --trust-code if you trust it"
        )
    if compiled := sorted(code.rglob(LEFT_OUT)):
        raise ConfigError(
            f"{compiled[0]} has compiled code, which may differ from the source that you can read. "
            f"Delete this folder"
        )
    if content_hash(files) != exported.config.own_code:
        raise ConfigError(
            f"{code} has changed since the export, or is missing. Copy it again, or export the "
            f"model again"
        )
    sys.dont_write_bytecode = True  # the folder stays as it was exported
    use_folder(code)


def load_network(folder: Path, exported: Exported) -> Network:
    """Build the network with its weights, in fp32.

    Raises:
        ConfigError: the weights do not fit the network.
    """
    network = exported.network()
    try:
        with utf8_path(folder) as named:
            network.load_state_dict(load_file(named / WEIGHTS))
    except (RuntimeError, SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{folder / WEIGHTS} cannot be loaded ({reason}). Other code exported it. "
            f"Export the model again"
        ) from None
    return network
