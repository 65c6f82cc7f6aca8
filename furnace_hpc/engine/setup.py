"""Set up a run: check the attempt, then build columns, model and engine."""

import gc
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest, origin_of
from furnace_hpc.config.preprocessing.fit import check_fit
from furnace_hpc.config.sections.batch import AUTO
from furnace_hpc.config.train_config import RunSpec, TrainConfig, accumulation_steps, with_steps
from furnace_hpc.data.columns import Columns, open_columns
from furnace_hpc.data.features.reader import FeatureReader
from furnace_hpc.data.loading.augment import Augmenter
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.data.loading.staging import SCRATCH, stage
from furnace_hpc.engine.checkpoint.random_state import seed_everything
from furnace_hpc.engine.context import RunContext
from furnace_hpc.engine.deepspeed_engine import Engine, build_engine, place
from furnace_hpc.engine.determinism import set_up_determinism
from furnace_hpc.engine.features.build import NO_FEATURES, Features, frozen_features
from furnace_hpc.engine.metering.flops import Coefficients, step_coefficients
from furnace_hpc.engine.micro_batch import probe, resolved
from furnace_hpc.engine.portable import set_up_portable
from furnace_hpc.engine.preload import no_collection
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.engine.ranks.stop import StopRequest
from furnace_hpc.engine.ranks.watchdog import Watchdog
from furnace_hpc.engine.speed.compilation import compile_blocks
from furnace_hpc.engine.weights.initial import set_initial_weights
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.network import Network
from furnace_hpc.model.own_code.network import make_network
from furnace_hpc.model.square_root import round_correctly
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.own_code import use_own_code
from furnace_hpc.runs.records.attempts import Attempt, read_attempt
from furnace_hpc.runs.records.weights import NamedWeights, changed_weights, read_named_weights
from furnace_hpc.runs.resume_overrides import overridden


def set_up(
    folder: RunFolder, attempt: int, processes: Processes, watchdog: Watchdog, stop: StopRequest
) -> RunContext:
    """Collective. Read and check the spec and the attempt, then build what training needs.

    Raises:
        ConfigError: the code, the packed data, the weights that the config names or the number of
            ranks differs from what the run was submitted with.
        Stopped: a rank has received a stop signal while features were computed.
    """
    spec = RunSpec.model_validate_json(read_regular(folder.spec))
    record = read_attempt(folder, attempt)
    _check_attempt(folder, record, processes)
    config = overridden(spec.config, record.overrides)
    use_own_code(config, folder)
    _set_up_arithmetic(config, processes.device)
    columns = _open_columns(record.data_dir, spec.data_fingerprint, watchdog)
    config = with_steps(config, columns.manifest.splits.get("train", 0))
    check_fit(config.model, columns.manifest, record.data_dir)
    named_weights = read_weights(config, folder, record, processes, watchdog)
    config = _choose_micro_batch(config, columns, folder, attempt, processes, watchdog)

    watchdog.heartbeat("building the model")
    model = build_model(config, columns.manifest)
    given = (model, config, columns.manifest, folder, processes)
    initial_weights = set_initial_weights(*given, watchdog.heartbeat)
    if processes.is_rank_zero:
        _print_left_out(model)
    sizes = _sizes_of(model)
    features = frozen_features(model, config, columns, folder, processes, watchdog, stop)
    flops = _count_flops(model, config, columns.manifest, folder, processes, features)
    if config.compile:
        compile_blocks(model, processes.device)
    place(model, config, processes)
    # DeepSpeed collects garbage four times while it starts. Without this each takes half a second,
    # because of all imported modules.
    gc.freeze()
    watchdog.heartbeat("starting DeepSpeed")
    engine = build_engine(model, config, processes)
    # Different dropout on each rank.
    seed_everything(config.training_seed * 1_000_003 + 1 + processes.rank)
    watchdog.heartbeat("opening the data")
    readers = _open_readers(config, columns, processes.device, features)
    return RunContext(
        spec=spec,
        config=config,
        folder=folder,
        attempt=attempt,
        processes=processes,
        engine=engine,
        readers=readers,
        watchdog=watchdog,
        stop=stop,
        data_origin=origin_of(columns.manifest),
        flops=flops,
        initial_weights=initial_weights,
        named_weights=named_weights,
        **sizes,
    )


def _sizes_of(model: Network) -> dict[str, int]:
    """The numbers of all parameters, and of those that are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {
        "num_parameters": sum(size for size, _ in sizes),
        "trainable_parameters": sum(size for size, is_trained in sizes if is_trained),
    }


def _choose_micro_batch(
    config: TrainConfig,
    columns: Columns,
    folder: RunFolder,
    attempt: int,
    processes: Processes,
    watchdog: Watchdog,
) -> TrainConfig:
    """Collective. Replace `micro_batch_size: auto` by a number."""
    if config.micro_batch_size != AUTO:
        return config

    def make_engine(tried: TrainConfig) -> Engine:
        watchdog.heartbeat(f"trying micro_batch_size {tried.micro_batch_size}")
        model = build_model(tried, columns.manifest)
        place(model, tried, processes)
        return build_engine(model, tried, processes)

    reader = _open_readers(config, columns, processes.device)["train"]
    return resolved(config, folder, attempt, processes, probe(make_engine, reader, processes))


def _count_flops(
    model: Network,
    config: TrainConfig,
    manifest: Manifest,
    folder: RunFolder,
    processes: Processes,
    features: Mapping[str, Features],
) -> Coefficients | None:
    """Count the FLOPs of a micro-batch on rank 0, which writes the metrics."""
    if not processes.is_rank_zero:
        return None
    micro_batch_size, _ = accumulation_steps(config, processes.world_size)
    cache = GridFolder(folder.path.resolve().parent).tables_cache
    shapes = {name: found.shape for name, found in features.items()}
    return step_coefficients(model, config, manifest, micro_batch_size, cache, shapes)


def _check_attempt(folder: RunFolder, record: Attempt, processes: Processes) -> None:
    if record.code_hash != code_hash():
        raise ConfigError(
            f"the code has changed since run {folder.run_id} was submitted: then "
            f"{record.code_hash}, now {code_hash()}. Restore the old code, or submit again with "
            "--code new."
        )
    if record.world_size not in (None, processes.world_size):
        raise ConfigError(
            f"this job has {processes.world_size} ranks, but run {folder.run_id} was submitted for "
            f"{record.world_size}. Give sbatch the --nodes and --ntasks-per-node of the submission."
        )


def read_weights(
    config: TrainConfig,
    folder: RunFolder,
    record: Attempt,
    processes: Processes,
    watchdog: Watchdog,
) -> NamedWeights:
    """Collective. Rank 0 checks that the weights that the config names are those at submission."""
    found, names, cache = NamedWeights(), list[str](), ""
    if processes.is_rank_zero:
        grid = GridFolder(folder.path.parent)
        found = read_named_weights(
            config, grid, lambda _: watchdog.heartbeat("hashing the weights of encoders")
        )
        names = changed_weights(config, record.weights_fingerprints, found.fingerprints)
        if found.revisions:  # lines of `setup` may give the jobs another hub cache
            cache = ". If the jobs have a hub cache of their own, submit with the same HF_HOME"
    names, cache = processes.broadcast((names, cache))
    if names:
        raise ConfigError(
            f"the weights of {', '.join(names)} have changed since run {folder.run_id} was "
            f"submitted. Restore them, or submit again{cache}"
        )
    return found


def _set_up_arithmetic(config: TrainConfig, device: torch.device) -> None:
    set_up_torch(config)
    round_correctly(False)
    if config.portable:
        set_up_portable(device)


def set_up_torch(config: TrainConfig) -> None:
    """Set torch's threads, its choice of algorithms, and the precision of fp32 on GPUs."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    set_up_determinism(config.deterministic)
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32  # torch's default is true


def _open_columns(data_dir: str, fingerprint: str, watchdog: Watchdog) -> Columns:
    """Open the packed data set, or its copy on this node's own disk if FURNACE_SCRATCH is set."""
    columns = open_columns(Path(data_dir))
    if columns.manifest.fingerprint != fingerprint:
        raise ConfigError(
            f"data folder {data_dir} has fingerprint {columns.manifest.fingerprint}, but the run "
            f"was made for {fingerprint}. Give the folder that the run was made with, or submit "
            "the grid again."
        )
    scratch = os.environ.get(SCRATCH)
    if scratch:
        columns, message = stage(columns, scratch, watchdog.heartbeat)
        with suppress(OSError):  # the log may be on a full disk
            print(message, flush=True)  # on every rank: nodes differ
    return columns


def build_model(config: TrainConfig, manifest: Manifest) -> Network:
    """Build the network with the same initial weights on every rank."""
    num_classes = {task.name: len(manifest.labels[task.name].classes) for task in config.tasks}
    seed_everything(config.training_seed)
    shapes = InputShapes.of(manifest)
    with no_collection():  # it imports encoders
        return make_network(config.model, shapes, num_classes, config.loss, config.ordinal_tasks)


def _print_left_out(model: Network) -> None:
    """Print which weights in the files of trained encoders are not used."""
    for encoder in model.furnace_encoders().values():
        if left_out := getattr(encoder, "left_out", ""):
            with suppress(OSError):  # the log may be on a full disk
                print(f"{encoder.about}: weights that are not used: {left_out}", flush=True)


def _open_readers(
    config: TrainConfig,
    columns: Columns,
    device: torch.device,
    features: Mapping[str, Features] = NO_FEATURES,
) -> dict[str, BatchReader]:
    modalities, tasks = config.model.modalities, tuple(task.name for task in config.tasks)
    sources = {name: found.source for name, found in features.items()}
    readers: dict[str, BatchReader] = {}
    for split in columns.manifest.splits:
        given = (columns, split, modalities, tasks, device)
        readers[split] = FeatureReader(sources, *given) if sources else BatchReader(*given)
        check_presence(readers[split], split, modalities, columns.manifest)
    if config.augment.is_on:
        readers["train"].augmenter = Augmenter(
            config.augment, config.training_seed, columns.manifest, modalities
        )
    readers["train"].balance(tuple(task.name for task in config.tasks if task.class_weights))
    return readers


def check_presence(
    reader: BatchReader, split: str, modalities: tuple[str, ...], manifest: Manifest
) -> None:
    """Raise ConfigError if a sample has none of the network's modalities."""
    indices = [manifest.modalities.index(name) for name in modalities]
    absent = ~reader.column("present")[:, indices].astype(bool).any(1)
    if absent.any():
        example = reader.column("sample_id")[absent][0]
        raise ConfigError(
            f"{absent.sum():,} samples of split {split!r}, such as sample_id {example}, have none "
            f"of {', '.join(modalities)}. Add a modality, or pack with --require {modalities[0]}."
        )
