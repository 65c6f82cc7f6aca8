"""Setting up a run: config, seeds, columns, model, engine."""

import gc
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest
from furnace_hpc.config.train_config import RunSpec, TrainConfig
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.data.loading.staging import SCRATCH, stage
from furnace_hpc.engine.checkpoint.random_state import seed_everything
from furnace_hpc.engine.deepspeed_engine import Engine, build_engine
from furnace_hpc.engine.distributed import Processes
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.model.encoders import InputShapes
from furnace_hpc.model.network import FusionModel
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import read_attempt
from furnace_hpc.runs.resume_overrides import overridden


@dataclass(frozen=True)
class Run:
    """A run that is ready to train."""

    spec: RunSpec
    config: TrainConfig
    folder: RunFolder
    engine: Engine
    readers: dict[str, BatchReader]
    num_parameters: int

    @property
    def reader(self) -> BatchReader:
        """The train split."""
        return self.readers["train"]


def set_up(
    folder: RunFolder,
    attempt: int,
    processes: Processes,
    heartbeat: Callable[[str], None] = lambda where: None,
) -> Run:
    """Collective. Read the run's spec and the attempt's facts, and build everything; `heartbeat` is told of slow steps.

    Raises:
        ConfigError: the code, the packed data or the number of ranks is not what the run was made for.
    """
    spec = RunSpec.model_validate_json(read_regular(folder.spec))
    asked = read_attempt(folder, attempt)
    if asked.code_hash != code_hash():
        raise ConfigError(
            f"the code has changed since run {folder.run_id} was submitted ({asked.code_hash}, now {code_hash()}): "
            f"put the old code back, or submit again with --code new"
        )
    if asked.world_size not in (None, processes.world_size):
        raise ConfigError(
            f"this job has {processes.world_size} ranks, and run {folder.run_id} was submitted for {asked.world_size}: "
            f"give sbatch the --nodes and --ntasks-per-node that it was submitted for"
        )
    config = overridden(spec.config, asked.overrides)
    _set_up_torch(config)

    columns = open_columns(Path(asked.data_dir))
    if columns.manifest.fingerprint != spec.data_fingerprint:
        raise ConfigError(
            f"data folder {asked.data_dir} has fingerprint {columns.manifest.fingerprint}, the run was made for "
            f"{spec.data_fingerprint}: give the folder it was made with, or submit the grid again"
        )
    if scratch := os.environ.get(SCRATCH):
        columns, words = stage(columns, scratch, heartbeat)
        with suppress(OSError):  # a log that cannot be written
            print(words, flush=True)  # on every rank: nodes differ
    num_classes = {
        task.name: len(columns.manifest.labels[task.name].classes) for task in config.tasks
    }
    seed_everything(config.seed)  # the same initial weights on every rank
    model = FusionModel(
        config.model, InputShapes.of(columns.manifest), num_classes, config.loss
    ).to(processes.device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    # DeepSpeed collects garbage four times while it starts: half a second each, with all that is
    # imported
    gc.freeze()
    engine = build_engine(model, config, processes)
    seed_everything(config.seed * 1_000_003 + 1 + processes.rank)  # another dropout on every rank

    modalities, tasks = config.model.modalities, tuple(num_classes)
    readers: dict[str, BatchReader] = {}
    for split in columns.manifest.splits:
        readers[split] = BatchReader(columns, split, modalities, tasks, processes.device)
        _check_presence(readers[split], split, modalities, columns.manifest)
    return Run(spec, config, folder, engine, readers, num_parameters)


def _check_presence(
    reader: BatchReader, split: str, modalities: tuple[str, ...], manifest: Manifest
) -> None:
    """Raise ConfigError where a sample has none of the modalities that the network sees."""
    bits = [manifest.modalities.index(name) for name in modalities]
    absent = ~reader.column("present")[:, bits].astype(bool).any(1)
    if absent.any():
        raise ConfigError(
            f"{absent.sum():,} samples of split {split!r}, such as sample_id {reader.column('sample_id')[absent][0]}, "
            f"have none of {', '.join(modalities)}: add a modality, or pack with --require {modalities[0]}"
        )


def _set_up_torch(config: TrainConfig) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    if config.deterministic and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
