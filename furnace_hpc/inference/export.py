"""A checkpoint becomes an exported model: read, written beside its place, loaded again, compared, then renamed."""

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest
from furnace_hpc.config.parsing.utf8_path import utf8_path
from furnace_hpc.data.columns import open_columns, rename_into_place, sync_folder, write_durably
from furnace_hpc.engine.checkpoint.loader import TAG
from furnace_hpc.engine.checkpoint.shards import whole_weights
from furnace_hpc.engine.deepspeed_engine import parameters_sha256
from furnace_hpc.inference.model_folder import (
    CONFIG,
    PROGRAM,
    TOKENIZER,
    WEIGHTS,
    Exported,
    Provenance,
)
from furnace_hpc.inference.predictor import Predictor
from furnace_hpc.inference.preprocess import make_tokenizer
from furnace_hpc.inference.source import Checkpoint, check_checkpoint, find_checkpoint, find_data
from furnace_hpc.inference.torch_export import make_program
from furnace_hpc.model.network import FusionModel
from furnace_hpc.model.scores import mean_prediction
from furnace_hpc.model.weights import architectures
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.records.checkpoint_files import describe, sync
from furnace_hpc.runs.records.predictions import read_arrays

COMPARED_ROWS = 64  # test samples whose logits are compared with those that the run wrote
# Other batches, threads and processors round otherwise; another network differs by whole logits.
OWN_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}

Say = Callable[[str], None]


def export(
    source: Path,
    out: Path,
    step: str | None,
    data_dir: Path | None,
    tokenizer: str | None,
    with_program: bool,
    replace: bool,
    say: Say,
) -> Exported:
    """Export a run's checkpoint to `out`; nothing is there before all of it is compared.

    Raises:
        ConfigError: there is no such checkpoint, it is damaged, or what was made of it differs from it.
    """
    out = out.resolve()
    _check_out(out, replace)
    checkpoint = find_checkpoint(source, step)
    place, data = find_data(checkpoint, data_dir)
    reads_text = "text" in checkpoint.config.model.modalities
    words = make_tokenizer(data, tokenizer) if reads_text else None
    say(
        f"{checkpoint.path}: {check_checkpoint(checkpoint)} files have the hashes of their manifest"
    )

    weights, exported = _read(checkpoint, data)
    nonce = secrets.token_hex(4)
    aside = out.with_name(f"{out.name}.tmp-{nonce}")
    try:
        aside.mkdir(parents=True)
        _save(weights, aside / WEIGHTS)
        if words:
            words.save(aside / TOKENIZER)
        _write_config(aside, exported)
        _check_equal(aside, weights)
        count = sum(value.numel() for value in weights.values())
        say(f"{count:,} weights of step {checkpoint.step}, loaded again: equal bit for bit")
        predictor = Predictor.load(aside, device="cpu")
        compared = _compare(predictor, checkpoint, place)
        say(f"its answers: {compared}")
        provenance = exported.provenance.model_copy(update={"compared": compared})
        exported = exported.model_copy(update={"provenance": provenance})
        if with_program:
            program = make_program(predictor.model, exported, aside / PROGRAM)
            differ = (
                f"differ by {program.difference:.1g} at most (accepted: {program.tolerance:.1g})"
            )
            say(f"{PROGRAM}: logits of every subset of modalities {differ}")
            exported = exported.model_copy(update={"program": program})
        exported = _write_config(aside, exported)
        sync_folder(aside)
        rename_into_place(aside, out, nonce)
    finally:  # an interrupt too; after the rename there is nothing left to remove
        shutil.rmtree(aside, ignore_errors=True)
    return exported


def _check_out(out: Path, replace: bool) -> None:
    """Raise ConfigError where there is something that must stay."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"--out {out} is a file: choose another place")
    found = {entry.name for entry in out.iterdir()}
    if foreign := found - {CONFIG, WEIGHTS, TOKENIZER, PROGRAM}:
        raise ConfigError(
            f"--out {out} holds {min(foreign)!r}, which no export made: choose an empty or new folder"
        )
    if found and not replace:
        raise ConfigError(
            f"--out {out} holds an exported model: choose another place, or replace it with --force"
        )


def _read(checkpoint: Checkpoint, data: Manifest) -> tuple[dict[str, Tensor], Exported]:
    """The weights, and what is to be said of them."""
    try:
        weights = whole_weights(checkpoint.path / TAG)
    except (RuntimeError, OSError, KeyError) as error:
        raise ConfigError(
            f"checkpoint {checkpoint.path} cannot be read: {' '.join(str(error).split())}"
        ) from None
    weights = {
        name: value.float().contiguous() if value.is_floating_point() else value
        for name, value in weights.items()
    }
    config, spec, result, scores = (
        checkpoint.config,
        checkpoint.spec,
        checkpoint.result,
        checkpoint.scores(),
    )
    thresholds = {
        task.name: scores[name]
        for task in config.tasks
        if (name := f"val/{task.name}/threshold") in scores
    }
    provenance = Provenance(
        grid=spec.grid,
        run_id=checkpoint.folder.run_id,
        variant=spec.variant,
        seed=config.seed,
        step=checkpoint.step,
        steps=config.steps,
        is_selected=checkpoint.is_selected,
        world_size=checkpoint.facts["world_size"],
        zero_stage=checkpoint.facts["zero_stage"],
        commit=result.commit if result else None,
        code_hash=checkpoint.facts["code_hash"],
        exported_by=code_hash(),
        versions=checkpoint.facts["versions"],
        parameters_sha256="",
        compared="",
    )
    exported = Exported(
        config=config,
        data=data.model_copy(update={"files": {}, "counts": {}}),
        architectures={},
        thresholds=thresholds,
        scores=scores,
        provenance=provenance,
    )
    network = exported.network()
    _check_names(network, weights, checkpoint)
    parameters = {name: weights[name] for name, _ in network.named_parameters()}
    sha256 = parameters_sha256(parameters)
    if result and checkpoint.step == result.steps and sha256 != result.parameters_sha256:
        raise ConfigError(
            f"the weights of {checkpoint.path} are not those that {checkpoint.folder.result} names"
        )
    more = {
        "architectures": architectures(network.encoders, config.model),
        "provenance": provenance.model_copy(update={"parameters_sha256": sha256}),
    }
    return weights, exported.model_copy(update=more)


def _check_names(network: FusionModel, weights: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    if differing := sorted(
        name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
    ):
        raise ConfigError(
            f"checkpoint {checkpoint.path} is not of this code's network ({len(differing)} weights differ, such as "
            f"{differing[0]}): export with the code that trained it (its hash is {checkpoint.facts['code_hash']}, "
            f"this is {code_hash()})"
        )


def _write_config(folder: Path, exported: Exported) -> Exported:
    """Write config.json with size and hash of the other files, all durable."""
    files = sorted(entry for entry in folder.iterdir() if entry.name != CONFIG)
    for path in files:
        sync(path)
    described = {path.name: tuple(describe(path)) for path in files}
    exported = exported.model_copy(update={"files": described})
    write_durably(folder / CONFIG, exported.model_dump_json(indent=1).encode())
    for path in files:  # safetensors gives its file to the owner alone, whatever the umask
        path.chmod((folder / CONFIG).stat().st_mode & 0o777)
    return exported


def _save(weights: dict[str, Tensor], path: Path) -> None:
    try:
        with utf8_path(path.parent) as folder:
            save_file(weights, folder / path.name)
    except SafetensorError as error:  # its own error where the disk is full, say
        raise ConfigError(
            f"{path} cannot be written ({error}): free some space there, or choose another --out"
        ) from None


def _check_equal(folder: Path, weights: dict[str, Tensor]) -> None:
    """Raise ConfigError unless the file holds the very weights that were read."""
    with utf8_path(folder) as named:
        again = load_file(named / WEIGHTS)
    if again.keys() != weights.keys() or not all(
        _same_bits(again[name], value) for name, value in weights.items()
    ):
        raise ConfigError(
            f"{folder / WEIGHTS} does not hold what was written: the disk there is not to be trusted"
        )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def _compare(predictor: Predictor, checkpoint: Checkpoint, place: Path) -> str:
    """Compare the exported network's logits with those that the run wrote of its test split; say what was done.

    Raises:
        ConfigError: they differ by more than rounding: this code computes another network of the same weights.
    """
    path = checkpoint.folder.predictions("test")
    if not checkpoint.is_selected or not path.is_file():
        return "not compared with the run's own: it wrote none of this step"
    try:
        columns, tasks = (
            open_columns(place).split("test"),
            [task.name for task in checkpoint.config.tasks],
        )
        count = min(COMPARED_ROWS, len(columns["present"]))
        frames = _frames(predictor, checkpoint)
        shown = [
            [stored_row(predictor, columns, row, frame) for row in range(count)] for frame in frames
        ]
        ids, *own = read_arrays(path, ["sample_id", *(f"logits.{task}" for task in tasks)])
        ids, logits = ids[:count], {task: of[:count] for task, of in zip(tasks, own, strict=True)}
    except (ConfigError, OSError, ValueError, LookupError, EOFError) as error:
        return f"not compared with the run's own ({path.name}: {' '.join(str(error).split())})"
    if not np.array_equal(ids, columns["sample_id"][:count]):
        return "not compared with the run's own: its test samples are in another order here"
    made = [predictor.logits(samples) for samples in shown]
    kinds = {task.name: task.kind for task in checkpoint.config.tasks}
    worst = 0.0
    for task, wanted in logits.items():
        expected, found = torch.from_numpy(wanted), [frame[task] for frame in made]
        got = found[0] if len(found) == 1 else mean_prediction(torch.stack(found), kinds[task])
        worst = max(
            worst, ((got - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
        )
    if not worst <= OWN_TOLERANCE[checkpoint.config.deepspeed.precision]:
        raise ConfigError(
            f"the exported network does not give the run's own logits (they differ by {worst:.2g} of the largest): "
            f"this code ({code_hash()}) is not the one that trained it ({checkpoint.facts['code_hash']})"
        )
    equal = "equal bit for bit" if worst == 0 else f"within {worst:.1e} of the largest logit"
    return f"those that the run wrote of {count} test samples, {equal}"


def _frames(predictor: Predictor, checkpoint: Checkpoint) -> tuple[int | None, ...]:
    """The frames of a clip whose mean the run has written; None: its middle one."""
    frames = predictor.exported.data.image_frames if "image" in predictor.modalities else None
    return (
        tuple(range(frames))
        if frames and checkpoint.config.evaluation.frames == "mean"
        else (None,)
    )


def stored_row(
    predictor: Predictor, columns: dict[str, np.ndarray], row: int, frame: int | None = None
) -> dict[str, np.ndarray]:
    """One row of a split, as the predictor takes it; of a clip one frame, the middle one where none is named."""
    data = predictor.exported.data
    bits = [data.modalities.index(name) for name in predictor.modalities]
    values = {"present": np.asarray(columns["present"][row])[bits]}
    for name in predictor.modalities:
        value = np.asarray(columns[name][row])
        if name == "image" and data.image_frames:
            value = value[len(value) // 2 if frame is None else frame]
        values[name] = value
        if f"{name}_length" in columns:
            values[f"{name}_length"] = np.asarray(columns[f"{name}_length"][row])
    return values
