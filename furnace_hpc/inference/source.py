"""Find the checkpoint to export and its data, and check its files. Nothing is unpickled here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest
from furnace_hpc.config.manifest import read_manifest as read_data_manifest
from furnace_hpc.config.parsing.format_number import check_not_newer
from furnace_hpc.config.parsing.lookup import data_root, pack_in
from furnace_hpc.config.train_config import RunSpec, TrainConfig
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import read_attempts
from furnace_hpc.runs.records.checkpoint_files import MANIFEST, is_complete, read_manifest, steps_of
from furnace_hpc.runs.records.metrics import read_metrics
from furnace_hpc.runs.records.result import RunResult, read_result
from furnace_hpc.runs.resume_overrides import overridden
from furnace_hpc.runs.trust import check_trusted

BEST = "best"


class CheckpointFacts(NamedTuple):
    """The needed part of a checkpoint's manifest."""

    world_size: int
    zero_stage: int
    code_hash: str
    versions: dict[str, str]
    files: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a run."""

    folder: RunFolder
    spec: RunSpec
    config: TrainConfig
    """Config of the spec, with the overrides of the last attempt."""
    result: RunResult | None
    step: int
    facts: CheckpointFacts

    @property
    def path(self) -> Path:
        """The checkpoint's folder."""
        return self.folder.checkpoint(self.step)

    @property
    def is_selected(self) -> bool:
        """Whether the run's result describes this step."""
        return self.result is not None and self.result.selected_step == self.step

    def scores(self) -> dict[str, float]:
        """The run's scores of these weights. Empty if the step was never evaluated."""
        if self.result and self.is_selected:
            return self.result.metrics
        scores: dict[str, float] = {}
        for record in read_metrics(self.folder):
            if record["kind"] == "val" and record["step"] == self.step:
                scores |= {name: v for name, v in record.items() if name.startswith("val/")}
        return scores


def find_checkpoint(given: Path, step: str | None) -> Checkpoint:
    """Find a run's checkpoint.

    Args:
        given: folder of a run or of a checkpoint.
        step: of the checkpoint of a run. None or "best" is the step selected by validation.

    Raises:
        ConfigError: there is no such checkpoint.
    """
    path = given.absolute()  # not resolved, because a run behind a link keeps the link's name
    if (path / MANIFEST).is_file() and path.parent.name == "checkpoints":
        if step is not None:
            raise ConfigError(
                f"{given} is already a checkpoint. Leave --step out, or give the run's folder"
            )
        folder, step = RunFolder(path.parent.parent), path.name.removeprefix("step-")
    else:
        folder = RunFolder(path)
    spec, result = _read_spec(folder, given), _read_result(folder)
    number = _choose_step(folder, result, step or BEST)
    if number not in steps_of(folder):
        raise ConfigError(
            f"{folder.run_id} has no checkpoint of step {number}. Choose one with --step "
            f"(checkpoints: {_list_steps(folder)})"
        )
    config = spec.config
    if attempts := read_attempts(folder):
        config = overridden(config, attempts[-1].overrides)
    return Checkpoint(folder, spec, config, result, number, _read_facts(folder.checkpoint(number)))


def check_checkpoint(checkpoint: Checkpoint) -> int:
    """Check a checkpoint's files against its manifest, before any is opened. Return their number.

    Raises:
        ConfigError: other users may write the files, a file is damaged, or the manifest lacks one.
    """
    path = checkpoint.path
    check_trusted(path, checkpoint.folder.path.parent.parent)
    if not is_complete(path):
        raise ConfigError(
            f"checkpoint {path} is damaged: a file differs from its size and hash in {MANIFEST}. "
            f"Choose another checkpoint with --step, or copy it again"
        )
    named = {*checkpoint.facts.files, MANIFEST}
    files = [entry for entry in path.rglob("*") if not entry.is_dir() or entry.is_symlink()]
    if unknown := sorted({str(file.relative_to(path)) for file in files} - named):
        raise ConfigError(
            f"checkpoint {path} contains {unknown[0]!r}, which its {MANIFEST} does not name. "
            f"Find out where the file comes from, and remove it"
        )
    return len(named) - 1


def find_data(checkpoint: Checkpoint, given: Path | None) -> tuple[Path, Manifest]:
    """Find the run's packed data. Return its folder and manifest.

    Args:
        checkpoint: of the run.
        given: the data root or the pack. None is the folder of the last attempt.

    Raises:
        ConfigError: the data is missing or has another fingerprint.
    """
    name = checkpoint.config.data.name
    attempts = read_attempts(checkpoint.folder)
    if given:
        pack = pack_in(given, name)
    elif attempts and attempts[-1].data_dir:
        pack = Path(attempts[-1].data_dir)
    else:
        pack = data_root(None) / name
    if not (pack / "manifest.json").is_file():
        raise ConfigError(
            f"the run's packed data is not in {str(pack)!r}. Its manifest is needed for labels, "
            f"statistics and preprocessing. Give the folder that contains {name!r} with --data-root"
        )
    manifest = read_data_manifest(pack)
    wanted = checkpoint.spec.data_fingerprint
    if manifest.fingerprint != wanted:
        raise ConfigError(
            f"data folder {str(pack)!r} has fingerprint {manifest.fingerprint}, but the run was "
            f"trained on {wanted}. Give the folder of that data with --data-root"
        )
    return pack, manifest


def _read_spec(folder: RunFolder, given: Path) -> RunSpec:
    if not folder.spec.is_file():
        raise _not_a_run(folder, given)
    try:
        return RunSpec.model_validate_json(read_regular(folder.spec))
    except ValidationError as error:
        check_not_newer(folder.spec, error)
        raise _unreadable(folder.spec, error) from None


def _not_a_run(folder: RunFolder, given: Path) -> ConfigError:
    if not (folder.path / "submissions").is_dir():
        return ConfigError(
            f"{given} is not a run's folder: it has no spec.json. "
            f"Give the folder of a run or of a checkpoint (checkpoints/step-N)"
        )
    message = f"{given} is the folder of a grid. Give the folder of one of its runs"
    if runs := sorted(entry.parent.name for entry in folder.path.glob("*/spec.json")):
        message += f", such as {given / runs[0]}"
    return ConfigError(message)


def _read_result(folder: RunFolder) -> RunResult | None:
    try:
        return read_result(folder)
    except ValueError as error:  # from pydantic or from decoding the text
        raise _unreadable(folder.result, error) from None


def _read_facts(path: Path) -> CheckpointFacts:
    try:
        content = read_manifest(path)
        facts = CheckpointFacts(*(content[name] for name in CheckpointFacts._fields))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path / MANIFEST, error) from None
    if [type(value) for value in facts] != [int, int, str, dict, dict]:
        raise _unreadable(path / MANIFEST, "fields of other types")
    return facts


def _unreadable(path: Path, error: object) -> ConfigError:
    reason = " ".join(str(error).split())[:200]
    return ConfigError(
        f"{path} cannot be read ({reason}). Export it with the version of the code that wrote it"
    )


def _list_steps(folder: RunFolder) -> str:
    return ", ".join(map(str, steps_of(folder))) or "none"


def _choose_step(folder: RunFolder, result: RunResult | None, step: str) -> int:
    if step != BEST:
        if not (step.isascii() and step.isdigit() and len(step) <= 12):
            raise ConfigError(f"--step is {step[:60]!r}, wanted a number of steps, or {BEST}")
        return int(step)
    if result:
        return result.selected_step
    for number in reversed(steps_of(folder)):
        try:
            best = read_manifest(folder.checkpoint(number))["state"]["best_step"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(best, int) and best:
            return best
    raise ConfigError(
        f"{folder.run_id} is not done and has no evaluated step. Choose a step with --step "
        f"(checkpoints: {_list_steps(folder)})"
    )
