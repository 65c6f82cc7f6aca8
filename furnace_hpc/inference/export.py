"""Export a checkpoint as a model folder.

The folder is written under a temporary name, loaded again and compared. Then it is renamed.
"""

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest
from furnace_hpc.config.own_code.sources import OWN_CODE, files_of
from furnace_hpc.config.parsing.utf8_path import utf8_path
from furnace_hpc.config.preprocessing.fit import encoders_of
from furnace_hpc.data.columns import rename_into_place
from furnace_hpc.engine.checkpoint.loader import TAG
from furnace_hpc.engine.checkpoint.shards import whole_average, whole_weights
from furnace_hpc.engine.deepspeed_engine import parameters_sha256
from furnace_hpc.host.durable_files import sync, write_durably
from furnace_hpc.inference.export_check import compare_logits
from furnace_hpc.inference.model_folder import (
    CONFIG,
    FILES,
    ONNX,
    PROGRAM,
    TOKENIZER,
    WEIGHTS,
    Exported,
    Provenance,
    needs_code,
)
from furnace_hpc.inference.onnx_export import make_onnx
from furnace_hpc.inference.predictor import Predictor
from furnace_hpc.inference.preprocess import make_tokenizer
from furnace_hpc.inference.source import Checkpoint, check_checkpoint, find_checkpoint, find_data
from furnace_hpc.inference.torch_export import make_program
from furnace_hpc.model.encoders.weights import architectures
from furnace_hpc.model.network import Network
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.own_code import find_own_code, use_own_code
from furnace_hpc.runs.records.checkpoint_files import describe

Report = Callable[[str], None]


def export(
    source: Path,
    out: Path,
    step: str | None,
    data_dir: Path | None,
    tokenizer: str | None,
    with_program: bool,
    replace: bool,
    report: Report,
    with_onnx: bool = False,
) -> Exported:
    """Export a run's checkpoint to `out`. The folder appears only after all comparisons.

    Raises:
        ConfigError: the checkpoint is missing or damaged, or the exported model differs from it.
    """
    out = out.resolve()
    _check_out(out, replace)
    checkpoint = find_checkpoint(source, step)
    pack, data = find_data(checkpoint, data_dir)
    token_reader = None
    if "text" in checkpoint.config.model.modalities:
        _, encoder = encoders_of(checkpoint.config.model).get("text", ("", None))
        token_reader = make_tokenizer(data, tokenizer, encoder)
    count = check_checkpoint(checkpoint)
    report(f"{checkpoint.path}: {count} files have the hashes of their manifest")

    weights = _read_weights(checkpoint)
    exported = _describe_model(checkpoint, data, weights)
    if checkpoint.config.ema:
        exported, weights = _averaged(exported, weights, checkpoint)
        report(f"moving average of the weights, decay {checkpoint.config.ema.decay}")
    nonce = secrets.token_hex(4)
    temporary = out.with_name(f"{out.name}.tmp-{nonce}")
    try:
        temporary.mkdir(parents=True)
        _save(weights, temporary / WEIGHTS)
        if token_reader:
            token_reader.save(temporary / TOKENIZER)
        if needs_code(checkpoint.config):
            _copy_code(checkpoint, temporary / OWN_CODE)
        _write_config(temporary, exported)
        predictor, exported = _compare(temporary, exported, weights, checkpoint, pack, report)
        if with_program:
            exported = _with_program(temporary, exported, predictor, report)
        if with_onnx:
            exported = _with_onnx(temporary, exported, predictor, report)
        exported = _write_config(temporary, exported)
        sync(temporary)
        rename_into_place(temporary, out, nonce)
    finally:  # also after an interrupt; after the rename there is nothing to remove
        shutil.rmtree(temporary, ignore_errors=True)
    return exported


def _check_out(out: Path, replace: bool) -> None:
    """Raise ConfigError if something at `out` must not be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"--out {out} is a file. Choose another folder")
    found = {entry.name for entry in out.iterdir()}
    if foreign := found - {*FILES, OWN_CODE}:
        raise ConfigError(
            f"--out {out} contains {min(foreign)!r}, which is not a file of an exported model. "
            f"Choose an empty or new folder"
        )
    if found and not replace:
        raise ConfigError(
            f"--out {out} contains an exported model. Choose another folder, or replace the model "
            f"with --force"
        )


def _copy_code(checkpoint: Checkpoint, target: Path) -> None:
    """Copy the run's own code from its snapshot. The hash of the run's config describes it.

    Raises:
        ConfigError: there is no such snapshot, or other users could change it.
    """
    source = find_own_code(str(checkpoint.config.own_code), checkpoint.folder)
    for name, path in files_of(source).items():
        copied = target / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        write_durably(copied, path.read_bytes())


def _read_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the whole weights. Floating-point weights become fp32."""
    try:
        weights = whole_weights(checkpoint.path / TAG)
    except (RuntimeError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"checkpoint {checkpoint.path} cannot be read ({reason}). Choose another with --step"
        ) from None
    for name, value in weights.items():
        if value.is_floating_point():
            weights[name] = value.float().contiguous()
    return weights


def _averaged(
    exported: Exported, weights: dict[str, Tensor], checkpoint: Checkpoint
) -> tuple[Exported, dict[str, Tensor]]:
    """Replace the weights by their moving average, which is what the run has evaluated."""
    average = whole_average(checkpoint.path / TAG)
    weights = weights | {name: value.float().contiguous() for name, value in average.items()}
    names = [name for name, _ in exported.network().named_parameters()]
    sha256 = parameters_sha256({name: weights[name] for name in names})
    provenance = exported.provenance.model_copy(update={"parameters_sha256": sha256})
    return exported.model_copy(update={"provenance": provenance}), weights


def _describe_model(checkpoint: Checkpoint, data: Manifest, weights: dict[str, Tensor]) -> Exported:
    """Collect the content of config.json, and check that the weights are those of the network."""
    config, scores = checkpoint.config, checkpoint.scores()
    thresholds = {}
    for task in config.tasks:
        if (name := f"val/{task.name}/threshold") in scores:
            thresholds[task.name] = scores[name]
    exported = Exported(
        config=config,
        data=data.model_copy(update={"files": {}, "counts": {}}),
        architectures={},
        thresholds=thresholds,
        scores=scores,
        provenance=_provenance(checkpoint),
    )
    if needs_code(config):
        use_own_code(config, checkpoint.folder)
    network = exported.network()
    _check_names(network, weights, checkpoint)
    sha256 = parameters_sha256({name: weights[name] for name, _ in network.named_parameters()})
    result = checkpoint.result
    if result and checkpoint.step == result.steps and sha256 != result.parameters_sha256:
        raise ConfigError(
            f"the weights of {checkpoint.path} differ from parameters_sha256 in "
            f"{checkpoint.folder.result}. One of the two was changed: copy the run again"
        )
    provenance = exported.provenance.model_copy(update={"parameters_sha256": sha256})
    found = architectures(nn.ModuleDict(network.furnace_encoders()), config.model)
    return exported.model_copy(update={"architectures": found, "provenance": provenance})


def _provenance(checkpoint: Checkpoint) -> Provenance:
    """Describe the checkpoint. Its hash and the comparison are filled in later."""
    spec, facts = checkpoint.spec, checkpoint.facts
    commit = None
    if checkpoint.result:
        commit = checkpoint.result.commit
    return Provenance(
        grid=spec.grid,
        run_id=checkpoint.folder.run_id,
        variant=spec.variant,
        seed=checkpoint.config.seed,
        step=checkpoint.step,
        steps=checkpoint.config.steps,
        is_selected=checkpoint.is_selected,
        world_size=facts.world_size,
        zero_stage=facts.zero_stage,
        commit=commit,
        code_hash=facts.code_hash,
        exported_by=code_hash(),
        versions=facts.versions,
        parameters_sha256="",
        compared="",
    )


def _check_names(network: Network, weights: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """Raise ConfigError unless the weights have the network's names and shapes."""
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    names = sorted(wanted.keys() | found.keys())
    if differing := [name for name in names if wanted.get(name) != found.get(name)]:
        raise ConfigError(
            f"checkpoint {checkpoint.path} does not fit this code's network "
            f"({len(differing)} weights differ, such as {differing[0]}). Export it with the code "
            f"that trained it (hash {checkpoint.facts.code_hash}, this code has {code_hash()})"
        )


def _write_config(folder: Path, exported: Exported) -> Exported:
    """Write config.json with the size and hash of the other files. All are synced to disk."""
    entries = sorted(folder.iterdir())
    files = [entry for entry in entries if entry.is_file() and entry.name != CONFIG]
    for path in files:
        sync(path)
    described = {path.name: tuple(describe(path)) for path in files}
    exported = exported.model_copy(update={"files": described})
    write_durably(folder / CONFIG, exported.model_dump_json(indent=1).encode())
    for path in files:  # safetensors ignores the umask: only the owner could read its file
        path.chmod((folder / CONFIG).stat().st_mode & 0o777)
    return exported


def _save(weights: dict[str, Tensor], path: Path) -> None:
    try:
        with utf8_path(path.parent) as folder:
            save_file(weights, folder / path.name)
    except SafetensorError as error:  # also raised for a full disk
        raise ConfigError(
            f"{path} cannot be written ({error}). Free disk space there, or choose another --out"
        ) from None


def _compare(
    folder: Path,
    exported: Exported,
    weights: dict[str, Tensor],
    checkpoint: Checkpoint,
    pack: Path,
    report: Report,
) -> tuple[Predictor, Exported]:
    """Load the written model and compare it. Return it with the result."""
    _check_equal(folder, weights)
    count = sum(value.numel() for value in weights.values())
    report(f"{count:,} weights of step {checkpoint.step}, loaded again: equal bit for bit")
    predictor = Predictor.load(folder, device="cpu", trust_code=True)
    compared = compare_logits(predictor, checkpoint, pack)
    report(f"outputs: {compared}")
    provenance = exported.provenance.model_copy(update={"compared": compared})
    return predictor, exported.model_copy(update={"provenance": provenance})


def _with_program(
    folder: Path, exported: Exported, predictor: Predictor, report: Report
) -> Exported:
    """Write the program of torch.export. Return the model with the comparison."""
    program = make_program(predictor.model, exported, folder / PROGRAM)
    report(f"{PROGRAM}: {program.describe()}")
    return exported.model_copy(update={"program": program})


def _with_onnx(folder: Path, exported: Exported, predictor: Predictor, report: Report) -> Exported:
    """Write the program of ONNX. Return the model with the comparison."""
    program = make_onnx(predictor.model, exported, folder / ONNX)
    report(f"{ONNX}: {program.describe()}")
    return exported.model_copy(update={"onnx": program})


def _check_equal(folder: Path, weights: dict[str, Tensor]) -> None:
    """Raise ConfigError unless the file has the same weights, bit for bit."""
    with utf8_path(folder) as named:
        found = load_file(named / WEIGHTS)
    is_equal = found.keys() == weights.keys() and all(
        _same_bits(found[name], value) for name, value in weights.items()
    )
    if not is_equal:
        raise ConfigError(
            f"{folder / WEIGHTS} differs from what was written. Check the disk, or choose another "
            f"--out"
        )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
