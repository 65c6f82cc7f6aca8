"""What may change when a started run resumes: the DeepSpeed file and the micro-batch.

The run id stays. They change where values are stored and how a step is split, not what is
computed. ZeRO stages 1 to 3 read each other's checkpoints (engine/checkpoint/reshard.py), and the
global batch size stays. Results are equal up to rounding, and the table names the runs. InfoNCE and
VICReg depend on the micro-batch, so the plan checks them.
"""

from collections.abc import Mapping
from typing import Any

from furnace_hpc.config.deepspeed_file import DeepSpeedFile
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.overrides import apply_overrides
from furnace_hpc.config.parsing.lookup import find_file, parse_value, read_json
from furnace_hpc.config.parsing.validation import validate
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.runs.records.attempts import Attempt

KEYS = ("deepspeed", "micro_batch_size")


def read_overrides(settings: list[str]) -> dict[str, Any]:
    """Parse `--resume-with key=value`. A DeepSpeed file's name is replaced by its content.

    Raises:
        ConfigError: `=` is missing, the key is not allowed, or the file is missing or not valid.
    """
    wanted: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(
                f"--resume-with got {setting!r}, wanted key=value, for example deepspeed=zero2"
            )
        if key not in KEYS:
            raise ConfigError(
                f"--resume-with {key}: a started run may only change {' or '.join(KEYS)}, "
                f"{nearest(key, KEYS)}. For other changes edit the grid, which makes new runs"
            )
        wanted[key] = parse_value(text)
        if key == "deepspeed":
            content = read_json(find_file("DeepSpeed file", str(wanted[key])))
            wanted[key] = validate(DeepSpeedFile, content, text).model_dump(mode="json")
    return wanted


def next_overrides(
    before: Mapping[str, Any], wanted: Mapping[str, Any], began_with: TrainConfig
) -> dict[str, Any]:
    """The overrides of the next attempt: those of the newest attempt, and the wanted ones.

    Raises:
        ConfigError: they would change the numbers, or no checkpoint could be read.
    """
    own = began_with.model_dump(mode="json", include=set(KEYS))
    overrides = {key: before[key] for key in KEYS if key in before} | dict(wanted)
    overrides = {key: value for key, value in overrides.items() if value != own[key]}
    if "deepspeed" in overrides:
        _check(
            began_with.deepspeed,
            validate(DeepSpeedFile, overrides["deepspeed"], "overrides of the last attempt"),
        )
    return overrides


def overridden(config: TrainConfig, overrides: Mapping[str, Any]) -> TrainConfig:
    """The config of an attempt with overrides. The DeepSpeed file is replaced as a whole.

    Raises:
        ConfigError: a value is not valid for its field.
    """
    if not overrides:
        return config
    content = config.model_dump()
    if "deepspeed" in overrides:
        del content["deepspeed"]
    return validate(TrainConfig, apply_overrides(content, dict(overrides)))


def describe(overrides: Mapping[str, Any]) -> str:
    """The overrides of an attempt, for people. Empty if there is none."""
    parts = []
    if file := overrides.get("deepspeed"):
        parts.append(f"another DeepSpeed file (ZeRO stage {file['zero_optimization']['stage']})")
    if "micro_batch_size" in overrides:
        size = overrides["micro_batch_size"]
        parts.append(f"micro-batch {size or 'as large as possible'}")
    return ", ".join(parts)


def describe_setups(attempts: list[Attempt]) -> list[str]:
    """Processes and overrides of the attempts that trained. One entry per change."""
    found: list[str] = []
    for attempt in attempts:
        size = attempt.world_size or 1
        setup = "1 process" if size == 1 else f"{size} processes"
        if overrides := describe(attempt.overrides):
            setup += f", {overrides}"
        if attempt.step and setup not in found[-1:]:
            found.append(setup)
    return found


def _check(old: DeepSpeedFile, new: DeepSpeedFile) -> None:
    if old.precision != new.precision:
        raise ConfigError(
            f"--resume-with deepspeed: that file trains in {new.precision} and the run began in "
            f"{old.precision}. Choose a file in {old.precision}, or start new runs with "
            "--set deepspeed=..."
        )
    old_stage, new_stage = old.zero_optimization.stage, new.zero_optimization.stage
    if (old_stage == 0) != (new_stage == 0):
        allowed = "1, 2 or 3" if old_stage else "0"
        raise ConfigError(
            f"--resume-with deepspeed: the run began at ZeRO stage {old_stage}, and that file has "
            f"stage {new_stage}. Stage 0 and the others cannot read each other's checkpoints. "
            f"Choose a file with stage {allowed}"
        )
