"""Set the first weights of a run to the selected weights of other runs or models (`init_from`).

Every attempt sets them, before a checkpoint is loaded: which checkpoint, or none, is decided later.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest, read_manifest
from furnace_hpc.config.sections.initial_weights import InitialWeights
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.engine.checkpoint.loader import TAG
from furnace_hpc.engine.checkpoint.shards import whole_average, whole_weights
from furnace_hpc.engine.deepspeed_engine import parameters_sha256
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.engine.weights.meaning import check_meaning
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import read_attempts
from furnace_hpc.runs.records.checkpoint_files import describe, is_complete
from furnace_hpc.runs.records.result import read_result
from furnace_hpc.runs.trust import check_trusted

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # of an exported model
_LENGTHS = "lora_magnitude_vector.default.weight"
Weights = dict[str, Tensor]
Source = tuple[str, Weights, Manifest | None]
Progress = Callable[[str], None]


def set_initial_weights(
    model: nn.Module,
    config: TrainConfig,
    manifest: Manifest,
    folder: RunFolder,
    processes: Processes,
    heartbeat: Progress,
) -> dict[str, str]:
    """Collective. Copy the weights of each source into the whole network, in the order of the list.

    Args:
        model: whole on every rank, in fp32, on the CPU.
        config: of the run.
        manifest: of the run's pack.
        folder: of the run. Runs of rows of the same grid are beside it.
        processes: rank 0 reads the files and sends the values.
        heartbeat: called with what is done now.

    Returns:
        Source -> SHA-256 of the copied values.

    Raises:
        ConfigError: a source is missing, not done or damaged, its parameters are not those of
            the network, or they stand for other tokens or classes.
    """
    hashes = {}
    for source in config.init_from:
        heartbeat(f"reading the weights of {source.name}")
        taken, problem, place = {}, "", source.name
        if processes.is_rank_zero:
            try:
                place, weights, theirs = _read(source, folder)
                taken = _chosen(model, weights, source)
                if theirs:
                    check_meaning(taken, theirs, manifest, source.name)
            except ConfigError as error:
                problem = str(error)
        problem, place, names = processes.broadcast((problem, place, sorted(taken)))
        if problem:
            raise ConfigError(problem)
        heartbeat(f"sending the weights of {source.name}")
        _copy(model, names, taken, processes)
        values = model.state_dict()
        hashes[place] = parameters_sha256({name: values[name] for name in names})
        processes.print_once(f"initial weights: {len(names)} tensors of {place}")
    return hashes


def _read(source: InitialWeights, folder: RunFolder) -> Source:
    """Name and whole weights of a source, and the manifest of its pack if it is known."""
    if source.model:
        return _read_model(Path(source.model))
    if source.run:
        return _read_run(RunFolder(Path(source.run)))
    if source.run_id is None:
        raise ConfigError(f"init_from names row {source.variant!r}, whose run is not known")
    return _read_run(RunFolder(folder.path.parent / source.run_id))


def _read_run(run: RunFolder) -> Source:
    """The weights that validation selected: their moving average, if the run has one."""
    result = read_result(run)
    if result is None:
        raise ConfigError(f"init_from needs run {run.path}, which is not done. Submit it first")
    path = run.checkpoint(result.selected_step)
    if not path.is_dir():
        raise ConfigError(
            f"init_from needs checkpoint {path}, which is missing. Restore it, or train that run "
            f"again"
        )
    # The files are pickles, which can run code. So no other user may have written them.
    check_trusted(path, run.path.resolve().parent.parent)
    if not is_complete(path):
        raise ConfigError(
            f"init_from needs checkpoint {path}, which is damaged: a file differs from its hash. "
            f"Restore it, or train that run again"
        )
    name = f"{result.run_id} at step {result.selected_step}"
    try:
        weights = whole_weights(path / TAG) | whole_average(path / TAG)
        return name, weights, _pack_of(run, result.data_fingerprint)
    except (RuntimeError, OSError, KeyError) as error:
        raise ConfigError(f"checkpoint {path} cannot be read ({error})") from None


def _pack_of(run: RunFolder, fingerprint: str) -> Manifest | None:
    """The manifest of a run's pack. None if the pack has moved, or was replaced."""
    with suppress(ConfigError, OSError, IndexError):
        manifest = read_manifest(Path(read_attempts(run)[-1].data_dir))
        if manifest.fingerprint == fingerprint:
            return manifest
    return None


def _read_model(folder: Path) -> Source:
    """The weights of an exported model. Its file contains no code."""
    try:
        content = json.loads(read_regular(folder / CONFIG))
        wanted = tuple(content["files"][WEIGHTS])
        found = tuple(describe(folder / WEIGHTS))
        manifest = Manifest.model_validate(content["data"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"init_from.model {str(folder)!r} is not an exported model ({error!r}). Make one with "
            f"`furnace export`"
        ) from None
    if wanted != found:
        raise ConfigError(
            f"{folder / WEIGHTS} is damaged: it differs from its hash in {CONFIG}. Export the "
            f"model again"
        )
    return f"model {folder}", load_file(folder / WEIGHTS), manifest


def _chosen(model: nn.Module, weights: Weights, source: InitialWeights) -> Weights:
    """The source's tensors that the network takes.

    Raises:
        ConfigError: the two networks differ in a part that is taken.
    """
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    weights, new = _with_adapters(list(wanted), weights)
    wanted = {name: shape for name, shape in wanted.items() if name not in new}
    taken = {name for name in wanted.keys() | weights.keys() if _is_in(name, source.parts)}
    for part in source.parts:
        if not any(_is_in(name, (part,)) for name in wanted):
            first = sorted({name.partition(".")[0] for name in wanted})
            raise ConfigError(
                f"init_from.parts has {part!r}, which no parameter's name begins with. Parts of "
                f"this network: {', '.join(first)}"
            )
    for name in sorted(taken):
        own, theirs = wanted.get(name), weights[name].shape if name in weights else None
        if own != theirs:
            raise ConfigError(
                f"init_from {source.name}: {name} is {_shape(theirs)} there and {_shape(own)} "
                f"here. Give both the same sizes, or choose other parts with init_from.parts"
            )
    return {name: weights[name] for name in taken}


def _with_adapters(wanted: list[str], weights: Weights) -> tuple[Weights, set[str]]:
    """Weights of a whole encoder under the names of one with adapters, which rename its layers.

    An adapter that the source lacks begins as it was made: its layer computes what it did. The
    lengths of the columns, which DoRA trains, follow from the weights.

    Returns:
        The weights, and the names of adapters that keep their values.
    """
    found, new = dict(weights), set[str]()
    for name in wanted:
        layer, is_renamed, last = name.partition(".base_layer.")
        plain = f"{layer}.{last}"
        if not is_renamed or name in weights or plain not in weights:
            continue
        found[name] = found.pop(plain)
        new |= {other for other in wanted if other.startswith(f"{layer}.lora_")}
        length = f"{layer}.{_LENGTHS}"
        if last == "weight" and length in wanted:
            found[length] = torch.linalg.norm(found[name], dim=1)
    return found, new - found.keys()


def _is_in(name: str, parts: tuple[str, ...]) -> bool:
    return not parts or any(name == part or name.startswith(f"{part}.") for part in parts)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "one number"


def _copy(model: nn.Module, names: list[str], taken: Weights, processes: Processes) -> None:
    """Collective. Copy rank 0's tensors into the network of every rank."""
    values = model.state_dict()
    for name in names:
        if processes.is_rank_zero:
            values[name].copy_(taken[name])
        if processes.world_size > 1:
            dist.broadcast(values[name], src=0, group=processes.control)
