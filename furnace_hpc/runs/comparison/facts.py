"""Read the facts of one run, by section: dotted key -> value. Times and costs are left out."""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.flatten import flatten
from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host.json_lines import read_json
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.code import SNAPSHOT_FACTS
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import Attempt, read_attempts
from furnace_hpc.runs.records.metrics import read_metrics
from furnace_hpc.runs.records.result import RunResult, read_result
from furnace_hpc.runs.resume_overrides import overridden


class Section(StrEnum):
    """A kind of facts to compare."""

    CONFIG = "config"
    CODE = "code"
    DATA = "data"
    ENVIRONMENT = "environment"
    METRICS = "metrics"


_OF_ENVIRONMENT = (
    *("device", "precision", "zero_stage", "world_size", "num_threads"),
    "micro_batch_size",
)
_OF_METRICS = (
    *("steps", "stopped_early", "selected_step", "parameters_sha256", "num_parameters"),
    "trainable_parameters",
)
_OF_ATTEMPT = ("cluster", "partition", "nodes", "gpus", "runs_per_node", "runs_per_gpu")
_PACK_PARTS = {"fingerprint", "statistics"}  # compared elsewhere, and derived from the files
Values = dict[str, Any]


@dataclass(frozen=True)
class RunFacts:
    """One run."""

    folder: RunFolder
    sections: dict[str, Values]
    pack: Values = field(default_factory=dict)
    """Manifest of its packed data. Empty if the pack has moved or was replaced."""
    snapshot: Path | None = None
    """Code snapshot of its newest attempt. None if it is missing."""
    notes: tuple[str, ...] = ()


def read_facts(run: RunFolder) -> RunFacts:
    """Read the facts of a run.

    Raises:
        ConfigError: it has no valid spec.json, or its result is damaged.
    """
    spec, result, attempts = _read_spec(run), read_result(run), read_attempts(run)
    newest = attempts[-1] if attempts else Attempt(attempt=0)
    config = overridden(spec.config, newest.overrides)
    values = flatten(config.model_dump(mode="json"), enter_lists=True)
    values |= flatten({"resources": spec.resources.model_dump(mode="json")})
    snapshot = _snapshot(run, newest)
    notes = []
    if result is None:
        notes.append("has no result yet: its metrics are those of its newest evaluation")
    if snapshot is None:
        notes.append("has no code snapshot: its files are not compared")
    return RunFacts(
        run,
        {
            "config": values,
            "code": _code(result, newest, snapshot),
            "data": _data(spec, result),
            "environment": _environment(result, newest),
            "metrics": _metrics(run, result),
        },
        _pack(spec, newest),
        snapshot,
        tuple(notes),
    )


def _snapshot(run: RunFolder, newest: Attempt) -> Path | None:
    path = run.path.resolve().parent / "code" / newest.snapshot
    return path if newest.snapshot and path.is_dir() else None


def _read_spec(run: RunFolder) -> RunSpec:
    try:
        return RunSpec.model_validate_json(read_regular(run.spec))
    except FileNotFoundError:
        raise ConfigError(
            f"run {run.run_id} has no spec.json, because it has not started. Compare it later"
        ) from None
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{run.spec} cannot be read ({reason}). Use the version of Furnace that wrote it"
        ) from None


def _code(result: RunResult | None, newest: Attempt, snapshot: Path | None) -> Values:
    commit = result.commit if result else None
    if result is None and snapshot is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            commit = read_json(snapshot / SNAPSHOT_FACTS)["commit"]
    code_hash = result.code_hash if result else newest.code_hash
    return {"commit": commit, "code_hash": code_hash, "snapshot": newest.snapshot or None}


def snapshot_files(snapshot: Path) -> Values:
    """Return file -> beginning of its SHA-256, of a code snapshot."""
    found = {}
    for path in sorted(snapshot.rglob("*")):
        is_cached = "__pycache__" in path.parts or path.parent == snapshot
        if path.is_file() and not is_cached:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(snapshot))] = digest[:12]
    return found


def _data(spec: RunSpec, result: RunResult | None) -> Values:
    values: Values = {"name": spec.config.data.name, "fingerprint": spec.data_fingerprint}
    if result and result.data_origin:
        values |= flatten({"origin": result.data_origin.model_dump(mode="json")})
    return values


def _pack(spec: RunSpec, newest: Attempt) -> Values:
    if not newest.data_dir:
        return {}
    try:
        manifest = read_manifest(Path(newest.data_dir))
    except (ConfigError, OSError):
        return {}
    if manifest.fingerprint != spec.data_fingerprint:
        return {}
    return flatten({"pack": manifest.model_dump(mode="json", exclude=_PACK_PARTS)})


def _environment(result: RunResult | None, newest: Attempt) -> Values:
    values = _fields(newest, _OF_ATTEMPT)
    values["hosts"] = newest.nodelist or newest.holder_host
    if result:
        values |= _fields(result, _OF_ENVIRONMENT) | flatten({"versions": result.versions})
    else:
        values["world_size"] = newest.world_size
    return values


def _metrics(run: RunFolder, result: RunResult | None) -> Values:
    if result:
        weights = {f"initial_weights.{key}": v for key, v in result.initial_weights.items()}
        return result.metrics | _fields(result, _OF_METRICS) | weights
    values: Values = {}
    for record in read_metrics(run):
        if record["kind"] == "val":
            scores = {key: v for key, v in record.items() if key.startswith("val/")}
            values = scores | {"steps": record["step"]}
    return values


def _fields(source: Any, names: Iterable[str]) -> Values:
    return {name: getattr(source, name) for name in names}
