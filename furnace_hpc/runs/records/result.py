"""The result that a run writes at its end."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import PackOrigin
from furnace_hpc.config.parsing.format_number import check_not_newer
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.folder import RunFolder, write_json


class RunResult(BaseModel):
    """`result.json`: written once, last. If it exists, the run is done."""

    # the scores of a diverged run may be NaN
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)

    format: Literal[1] = 1
    run_id: str
    variant: str
    seed: int
    steps: int = Field(description="optimizer steps trained")
    stopped_early: bool = Field(
        default=False, description="whether early stopping ended the training at this step"
    )
    selected_step: int = Field(
        description="step of the scored parameters, selected on the validation split"
    )
    metrics: dict[str, float] = Field(
        description="<split>/<task>/<metric> at the selected step, whole split"
    )
    parameters_sha256: str = Field(
        description="SHA-256 of the final fp32 parameters, in name order"
    )
    initial_weights: dict[str, str] = Field(
        default_factory=dict,
        description="source of `init_from` -> SHA-256 of the values taken from it",
    )
    weights_fingerprints: dict[str, str] = Field(
        default_factory=dict,
        description="config key of an encoder or a source of `init_from` -> hash of its weights",
    )
    weights_revisions: dict[str, str] = Field(
        default_factory=dict,
        description="config key of an encoder -> its revision in the hub's cache",
    )
    num_parameters: int = Field(description="numbers in the network, frozen ones included")
    trainable_parameters: int | None = Field(
        default=None, description="numbers in the network that are trained; None if unknown"
    )
    world_size: int = Field(description="processes of the last attempt")
    num_threads: int = Field(
        description="torch threads per process; results are bit-identical for the same count"
    )
    attempts: int = Field(description="number of attempts, this one included")
    train_s: float = Field(description="seconds in training steps, over all attempts that count")
    wall_s: float = Field(description="seconds from first attempt's start to this result")
    samples_per_s: float = Field(
        description="samples trained per second of training, all processes"
    )
    peak_memory_gib: float = Field(
        description="GPU: peak allocated; CPU: peak resident; worst process"
    )
    peak_reserved_gib: float | None = Field(
        default=None, description="GPU: peak reserved by torch; worst process"
    )
    model_tflop_s: float | None = Field(
        default=None, description="model TFLOP/s of one process, in training steps; None if unknown"
    )
    mfu: float | None = Field(
        default=None, description="model_tflop_s divided by the GPU's dense peak; None if unknown"
    )
    data_wait_s: float | None = Field(
        default=None, description="seconds of train_s in which the slowest process waited for data"
    )
    energy_j: float | None = Field(
        default=None, description="joules of all GPUs in training steps; None if NVML is missing"
    )
    micro_batch_size: int | None = Field(
        default=None, description="samples per forward pass and process, in the last attempt"
    )
    device: str = Field(description="model of GPU or CPU")
    precision: str = Field(description="bf16 or fp32")
    zero_stage: int = Field(description="ZeRO stage of the engine")
    data_fingerprint: str
    data_origin: PackOrigin | None = Field(
        default=None, description="where the pack's samples were drawn from; None if not known"
    )
    code_hash: str = Field(description="hash of the sources that decide numbers")
    commit: str | None = Field(
        description="git commit of the code, with +dirty if files were changed"
    )
    versions: dict[str, str] = Field(
        description="library -> version; image -> the container's image"
    )

    @classmethod
    def from_json(cls, content: bytes | str) -> Self:
        """Parse a result. It is refused if pydantic would convert a value, such as `"500"` to 500.

        Raises:
            ValidationError: it is damaged, or of another version.
        """
        return cls.model_validate_json(content, strict=True)


def read_result(folder: RunFolder) -> RunResult | None:
    """The result. None if the run is not done.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        return RunResult.from_json(read_regular(folder.result))
    except FileNotFoundError:
        return None
    except ValueError as error:
        check_not_newer(folder.result, error)
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{folder.result} is not a valid result ({reason}). Move it away"
        ) from None


def write_result(folder: RunFolder, result: RunResult) -> None:
    """Write the result. A run does this last."""
    write_json(folder.result, result.model_dump())
