"""Which checkpoint of a run is exported, whether it may be opened, and what its run says of it. No pickle here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest
from furnace_hpc.config.manifest import read_manifest as read_data_manifest
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


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a run."""

    folder: RunFolder
    spec: RunSpec
    config: TrainConfig
    """The spec's, with what the last attempt was started with instead."""
    result: RunResult | None
    step: int
    facts: dict[str, Any]
    """Its manifest: world size, ZeRO stage, code hash, versions, files."""

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.folder.checkpoint(self.step)

    @property
    def is_selected(self) -> bool:
        """Whether the run's result is of this step."""
        return self.result is not None and self.result.selected_step == self.step

    def scores(self) -> dict[str, float]:
        """What the run measured of these weights; nothing where this step was never evaluated."""
        if self.result and self.is_selected:
            return self.result.metrics
        records = [
            r for r in read_metrics(self.folder) if r["kind"] == "val" and r["step"] == self.step
        ]
        return {
            name: value
            for record in records
            for name, value in record.items()
            if name.startswith("val/")
        }


def find_checkpoint(given: Path, step: str | None) -> Checkpoint:
    """The checkpoint of a run folder (its best one, or `step`), or of a checkpoint's own folder.

    Raises:
        ConfigError: there is none.
    """
    path = given.absolute()  # not resolved: a run may lie behind a link, and its name counts
    if (path / MANIFEST).is_file() and path.parent.name == "checkpoints":
        if step is not None:
            raise ConfigError(
                f"{given} is a checkpoint already: give its run's folder with --step, or leave --step out"
            )
        folder, step = RunFolder(path.parent.parent), path.name.removeprefix("step-")
    else:
        folder = RunFolder(path)
    spec, result = _spec(folder, given), _result(folder)
    number = _step(folder, result, step or BEST)
    there = steps_of(folder)
    if number not in there:
        steps = f"it has those of {', '.join(map(str, there))}" if there else "it has none"
        raise ConfigError(
            f"{folder.run_id} has no checkpoint of step {number} ({steps}): choose by --step"
        )
    attempts = read_attempts(folder)
    config = overridden(spec.config, attempts[-1].overrides if attempts else {})
    return Checkpoint(folder, spec, config, result, number, _facts(folder.checkpoint(number)))


def check_checkpoint(checkpoint: Checkpoint) -> int:
    """Check that its files are those that were written, before any of them is opened; return how many.

    Raises:
        ConfigError: somebody else could have written them, a file is damaged, or one is there that nobody wrote down.
    """
    path = checkpoint.path
    check_trusted(path, checkpoint.folder.path.parent.parent)
    if not is_complete(path):
        raise ConfigError(
            f"checkpoint {path} is damaged: a file has not the size and hash of its {MANIFEST}; "
            f"choose another by --step, or copy it again"
        )
    named = {*checkpoint.facts["files"], MANIFEST}
    strangers = [
        str(f.relative_to(path)) for f in path.rglob("*") if not f.is_dir() or f.is_symlink()
    ]
    if unknown := sorted(set(strangers) - named):
        raise ConfigError(
            f"checkpoint {path} holds {unknown[0]!r}, which its {MANIFEST} does not name: look at it"
        )
    return len(named) - 1


def find_data(checkpoint: Checkpoint, given: Path | None) -> tuple[Path, Manifest]:
    """The packed data that the run was made for: folder and manifest. `given`: the data root, or the pack.

    Raises:
        ConfigError: it is not there, or is another.
    """
    attempts = read_attempts(checkpoint.folder)
    before = attempts[-1].data_dir if attempts else ""
    name = checkpoint.config.data.name
    place = pack_in(given, name) if given else Path(before or data_root(None) / name)
    if not (place / "manifest.json").is_file():
        raise ConfigError(
            f"the run's packed data are not in {str(place)!r}, and their manifest is needed (labels, statistics, "
            f"preprocessing): give the folder that holds {name!r} by --data-root"
        )
    manifest = read_data_manifest(place)
    if manifest.fingerprint != checkpoint.spec.data_fingerprint:
        raise ConfigError(
            f"data folder {str(place)!r} has fingerprint {manifest.fingerprint}, the run was trained on "
            f"{checkpoint.spec.data_fingerprint}: give the folder that holds those by --data-root"
        )
    return place, manifest


def _spec(folder: RunFolder, given: Path) -> RunSpec:
    if not folder.spec.is_file():
        if (folder.path / "submissions").is_dir():
            runs = sorted(entry.parent.name for entry in folder.path.glob("*/spec.json"))
            such = f", such as {given / runs[0]}" if runs else ""
            raise ConfigError(
                f"{given} is the folder of a grid: give that of one of its runs{such}"
            )
        raise ConfigError(
            f"{given} is neither a run's folder (with spec.json) nor a checkpoint (checkpoints/step-N)"
        )
    try:
        return RunSpec.model_validate_json(read_regular(folder.spec))
    except ValidationError as error:
        raise _unreadable(folder.spec, error) from None


def _result(folder: RunFolder) -> RunResult | None:
    try:
        return read_result(folder)
    except ValueError as error:  # pydantic's own errors, and text that is none
        raise _unreadable(folder.result, error) from None


def _facts(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest, as far as it is needed here."""
    try:
        facts = read_manifest(path)
        wanted = (
            facts["world_size"],
            facts["zero_stage"],
            facts["code_hash"],
            facts["versions"],
            facts["files"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path / MANIFEST, error) from None
    if [type(value) for value in wanted] != [int, int, str, dict, dict]:
        raise _unreadable(path / MANIFEST, "fields of other types")
    return facts


def _unreadable(path: Path, error: object) -> ConfigError:
    return ConfigError(
        f"{path} cannot be read ({' '.join(str(error).split())[:200]}): is it a run of this version?"
    )


def _step(folder: RunFolder, result: RunResult | None, step: str) -> int:
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
    there = ", ".join(map(str, steps_of(folder))) or "none"
    raise ConfigError(
        f"{folder.run_id} is not done, and no step of it was evaluated yet: give --step (checkpoints: {there})"
    )
