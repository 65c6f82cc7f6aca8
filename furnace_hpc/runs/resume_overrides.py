"""What a started run may resume with: another DeepSpeed file, another micro-batch. Its identity does not change.

Both decide where numbers lie and in how many pieces a step is computed, not what is computed. Each ZeRO stage from 1
to 3 reads the checkpoints of the others (engine/checkpoint/reshard.py), and the global batch size stays. Results are
the same up to rounding, and the table names the runs. InfoNCE and VICReg depend on the micro-batch; the plan checks it.
"""

from collections.abc import Mapping
from typing import Any

from furnace_hpc.config.deepspeed_file import DeepSpeedFile
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.grid import apply_overrides
from furnace_hpc.config.parsing.lookup import find_file, parse_value, read_json
from furnace_hpc.config.parsing.validation import validate
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.runs.records.attempts import Attempt

KEYS = ("deepspeed", "micro_batch_size")


def read_overrides(settings: list[str]) -> dict[str, Any]:
    """What `--resume-with key=value` asks for; a DeepSpeed file's name is replaced by what the file says.

    Raises:
        ConfigError: no `=`, another key, no such file, or a file that is not right.
    """
    asked: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(
                f"--resume-with got {setting!r}, wanted key=value, for example deepspeed=zero2"
            )
        if key not in KEYS:
            raise ConfigError(
                f"--resume-with {key}: a begun run can go on with another {' or '.join(KEYS)} only, "
                f"{nearest(key, KEYS)}; for anything else change the grid, which makes new runs"
            )
        asked[key] = parse_value(text)
        if key == "deepspeed":
            content = read_json(find_file("DeepSpeed file", str(asked[key])))
            asked[key] = validate(DeepSpeedFile, content, text).model_dump(mode="json")
    return asked


def kept(
    before: Mapping[str, Any], asked: Mapping[str, Any], began_with: TrainConfig
) -> dict[str, Any]:
    """The overrides of the next attempt: the newest attempt's, unless others are asked for.

    Raises:
        ConfigError: what is asked for would change the numbers, or no checkpoint could be read.
    """
    own = began_with.model_dump(mode="json", include=set(KEYS))
    overrides = {key: before[key] for key in KEYS if key in before} | dict(asked)
    overrides = {key: value for key, value in overrides.items() if value != own[key]}
    if "deepspeed" in overrides:
        _check(
            began_with.deepspeed,
            validate(DeepSpeedFile, overrides["deepspeed"], "overrides of the last attempt"),
        )
    return overrides


def overridden(config: TrainConfig, overrides: Mapping[str, Any]) -> TrainConfig:
    """The config that an attempt trains with. A DeepSpeed file is replaced whole.

    Raises:
        ConfigError: a value that its field cannot have.
    """
    content = config.model_dump()
    if "deepspeed" in overrides:
        del content["deepspeed"]
    return validate(TrainConfig, apply_overrides(content, dict(overrides)))


def describe(overrides: Mapping[str, Any]) -> str:
    """What an attempt does otherwise than its run's spec says; empty for nothing that could matter to a reader."""
    words = []
    if file := overrides.get("deepspeed"):
        words.append(f"another DeepSpeed file (ZeRO stage {file['zero_optimization']['stage']})")
    if "micro_batch_size" in overrides:
        words.append(f"micro-batch {overrides['micro_batch_size'] or 'as large as can be'}")
    return ", ".join(words)


def ways(attempts: list[Attempt]) -> list[str]:
    """How the attempts that trained did so, each change named once: one entry where nothing changed."""
    found: list[str] = []
    for attempt in attempts:
        size = attempt.world_size or 1
        words = [f"{size} process{'es' if size > 1 else ''}", describe(attempt.overrides)]
        way = ", ".join(filter(None, words))
        if attempt.step and way not in found[-1:]:
            found.append(way)
    return found


def _check(old: DeepSpeedFile, new: DeepSpeedFile) -> None:
    if (old.bf16, old.data_types) != (new.bf16, new.data_types):
        raise ConfigError(
            f"--resume-with deepspeed: that file trains in {new.precision} and the run was begun in {old.precision}, "
            f"or gradients are accumulated in another type: choose a file that differs in zero_optimization or "
            f"activation_checkpointing alone, or begin new runs by --set deepspeed=..."
        )
    stages = old.zero_optimization.stage, new.zero_optimization.stage
    if (stages[0] == 0) != (stages[1] == 0):
        raise ConfigError(
            f"--resume-with deepspeed: the run was begun at ZeRO stage {stages[0]}, and that file is of stage "
            f"{stages[1]}: stage 0 and the others cannot read each other's checkpoints, so choose a file among "
            f"stages {'1, 2, 3' if stages[0] else '0'}"
        )
