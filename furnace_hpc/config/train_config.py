"""Typed configuration of one run: everything that decides its numbers.

A field marked `identity: False` changes where or how often something is written, never a number.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from typing import Annotated, Literal

from pydantic import Field, model_validator

from furnace_hpc.config.base import (
    ADDED_LATER,
    FROM_EPOCHS,
    NAME_PATTERN,
    NOT_IDENTITY,
    Config,
    Name,
    Seed,
)
from furnace_hpc.config.deepspeed_file import DeepSpeedFile
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.identity import identity_hash, seeded_hashes
from furnace_hpc.config.metrics import (
    METRICS,
    OF_TARGETS,
    Direction,
    checked_direction,
    is_one_of,
    metric_direction,
    split_target,
    valid_metrics,
)
from furnace_hpc.config.parsing.run_names import TRIAL
from furnace_hpc.config.sections.augment import AugmentConfig, check_cached_features
from furnace_hpc.config.sections.average import EmaConfig
from furnace_hpc.config.sections.batch import AUTO, MicroBatchSize
from furnace_hpc.config.sections.data import DataConfig
from furnace_hpc.config.sections.evaluation import EarlyStoppingConfig, EvaluationConfig
from furnace_hpc.config.sections.initial_weights import Sources
from furnace_hpc.config.sections.loss import LossConfig
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.config.sections.optimizer import (
    WHOLE_MATRICES,
    OptimizerConfig,
    ScheduleConfig,
)
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.config.seeds import combined_seed

UNKNOWN_STEPS = 0  # of a config with `epochs`, while the size of the train split is not known


class TrainConfig(Config):
    """Everything that decides a run's numbers."""

    data: DataConfig = DataConfig()
    tasks: tuple[TaskConfig, ...] = Field(default=(TaskConfig(name="digit"),), min_length=1)
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = Field(default=AugmentConfig(), json_schema_extra=ADDED_LATER)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig | None = Field(
        default=None,
        json_schema_extra=ADDED_LATER,
        description="evaluates, selects and exports a moving average of the weights [off]",
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    deepspeed: DeepSpeedFile = Field(
        description="the content of a file of ds_configs/. A grid gives its name"
    )
    steps: int = Field(
        default=500,
        ge=1,
        json_schema_extra=FROM_EPOCHS,
        description="optimizer steps. A row has steps or epochs, not both",
    )
    epochs: float | None = Field(
        default=None,
        gt=0,
        json_schema_extra=ADDED_LATER,
        description="passes over the train split, instead of steps; fractions such as 0.5 are "
        "allowed. steps is then epochs x samples / global_batch_size, rounded up",
    )
    early_stopping: EarlyStoppingConfig | None = Field(
        default=None,
        json_schema_extra=ADDED_LATER,
        description="ends the training when evaluation.metric no longer improves [off]",
    )
    init_from: Sources = Field(
        default=(),
        json_schema_extra=ADDED_LATER,
        description="rows, runs or exported models whose selected weights the training starts from "
        "(one mapping or a list) [new weights]",
    )
    global_batch_size: int = Field(
        default=32, ge=1, description="samples per optimizer step, over all processes"
    )
    micro_batch_size: MicroBatchSize = Field(
        default=None,
        description="samples per forward pass and process [global_batch_size / world_size]. auto: "
        "the largest power of two that fits into the GPU, chosen before step 1 and kept",
    )
    seed: Seed = Field(default=0, description="seed of initial weights, sample order and dropout")
    pack_seed: Seed | None = Field(
        default=None,
        json_schema_extra=ADDED_LATER,
        description="hash of the pack's name if the grid has several packs. It is set by the grid "
        "and changes the seed of the training, so that packs are independent",
    )
    own_code: str | None = Field(
        default=None,
        json_schema_extra=ADDED_LATER,
        description="hash of the grid's `code` if the row uses it. It is set by the grid, so that "
        "a run is never that of other code",
    )
    deterministic: bool = Field(
        default=True, description="CUDA: use only algorithms that give the same bits every time"
    )
    portable: bool = Field(
        default=False,
        json_schema_extra=ADDED_LATER,
        description="train on CPUs with fixed instructions and one thread per process, which is "
        "made to give the same bits on x86-64 CPUs with AVX2. GPUs are refused",
    )
    tf32: bool = Field(
        default=False,
        json_schema_extra=ADDED_LATER,
        description="NVIDIA GPUs since A100: round the factors of fp32 matrix products and "
        "convolutions to 10 bits. They are then several times as fast",
    )
    compile: bool = Field(
        default=False,
        json_schema_extra=ADDED_LATER,
        description="compile the attention blocks and transformer layers with torch.compile. Needs "
        "ZeRO stage 0, 1 or 2, no activation_checkpointing, and a compiler on the nodes",
    )
    log_every: int = Field(
        default=10, ge=1, json_schema_extra=NOT_IDENTITY, description="steps between records"
    )
    checkpoint_every: int = Field(
        default=100, ge=1, json_schema_extra=NOT_IDENTITY, description="steps between checkpoints"
    )
    keep_checkpoints: int = Field(
        default=2, ge=1, json_schema_extra=NOT_IDENTITY, description="newest checkpoints kept"
    )
    keep_every: int | None = Field(
        default=None,
        ge=1,
        json_schema_extra=NOT_IDENTITY,
        description="checkpoints at multiples of this step are never deleted",
    )
    checkpoint_in_background: bool = Field(
        default=True,
        json_schema_extra=NOT_IDENTITY,
        description="continue training while a checkpoint is written, from a copy in host memory",
    )
    hang_timeout_s: float = Field(
        default=600.0,
        ge=5,
        json_schema_extra=NOT_IDENTITY,
        description="seconds without progress after which a rank counts as hung. Before the first "
        "step of an attempt it is at least 1,800",
    )

    @model_validator(mode="after")
    def _names(self) -> "TrainConfig":
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"tasks {names}: a name is a duplicate. Rename one")
        if "consistency" in names:
            raise ValueError(
                "task 'consistency': metrics of two modalities have this name. Choose another"
            )
        own = self.evaluation.own_metrics
        check_metric(self.selection_metric, self.tasks, splits=("val",), own=own)
        self._check_direction()
        self._check_compile()
        self._check_optimizer()
        self._check_mixup()
        check_cached_features(self.augment, self.model.cached_modalities)
        for key in self.needs_micro_batch:
            if self.micro_batch_size == AUTO:
                raise ValueError(
                    f"micro_batch_size is auto, and {key} depends on the micro-batch, so "
                    f"rows could not be compared. Write a number, or remove {key}"
                )
        for term in self.loss.compares_samples:
            if len(self.model.modalities) < 2:
                raise ValueError(
                    f"loss.{term} compares modalities, and model.modalities is "
                    f"{list(self.model.modalities)}. Add a modality, or remove loss.{term}"
                )
        return self

    def _check_mixup(self) -> None:
        if not self.augment.mixup:
            return
        for task in self.tasks:
            if task.kind == "ordinal":
                raise ValueError(
                    f"augment.mixup is for single_label, multi_label and regression, and task "
                    f"{task.name!r} is ordinal. Remove one of them"
                )
        if self.model.network:
            raise ValueError(
                "augment.mixup mixes the outputs of encoders, and model.network is your own. "
                "Remove one of them"
            )
        if self.micro_batch_size == 1:
            raise ValueError(
                "augment.mixup mixes two samples of a micro-batch, and micro_batch_size is 1. "
                "Write 2 or more"
            )

    def _check_direction(self) -> None:
        """A metric of own code needs a direction. That of another metric cannot be changed."""
        given = self.evaluation.direction
        if given is None and is_one_of(self.selection_metric, self.evaluation.own_metrics):
            raise ValueError(
                f"evaluation.metric {self.selection_metric} is of your own code, so its better "
                "values are not known. Add evaluation.direction: max or min"
            )
        if given is None:
            return
        try:
            checked_direction(self.selection_metric, given)
        except ConfigError as error:
            raise ValueError(f"evaluation.{error}") from None

    def _check_compile(self) -> None:
        if not self.compile:
            return
        stage = self.deepspeed.zero_optimization.stage
        if stage == 3:
            raise ValueError(
                "compile: true needs ZeRO stage 0, 1 or 2, got stage 3, which gathers the "
                "parameters of each layer while the layer runs. Change one of them"
            )
        if self.deepspeed.activation_checkpointing:
            raise ValueError(
                "compile: true does not work with activation_checkpointing. Remove one of them"
            )
        encoders = {name: self.model.encoder(name) for name in self.model.modalities}
        if found := [name for name, one in encoders.items() if one.gradient_checkpointing]:
            raise ValueError(
                f"compile: true does not work with model.{found[0]}.gradient_checkpointing. Remove "
                "one of them"
            )
        if self.portable:
            raise ValueError(
                "compile: true does not work with portable: true, because the compiler chooses "
                "instructions by the CPU. Remove one of them"
            )

    def _check_optimizer(self) -> None:
        name, stage = self.optimizer.name, self.deepspeed.zero_optimization.stage
        if name in WHOLE_MATRICES and stage > 0:
            raise ValueError(
                f"optimizer {name} needs whole matrices, and ZeRO stage {stage} gives an "
                "optimizer parts of a flat vector. Use stage 0, or another optimizer"
            )
        if self.portable and name != "adamw":
            raise ValueError(
                f"portable: true is made for optimizer adamw, got {name}. Change one of them"
            )

    @property
    def needs_micro_batch(self) -> tuple[str, ...]:
        """The keys in use whose effect depends on the size of the micro-batch."""
        keys = [f"loss.{term}" for term in self.loss.compares_samples]
        if self.augment.mixup:
            keys.append("augment.mixup")
        return tuple(keys)

    @property
    def training_seed(self) -> int:
        """Seed of everything random in training: weights, dropout, order, frames and draws."""
        if self.pack_seed is None:
            return self.seed
        return combined_seed(self.pack_seed, self.seed)

    @property
    def ordinal_tasks(self) -> frozenset[str]:
        """Names of the tasks whose classes are ordered."""
        return frozenset(task.name for task in self.tasks if task.kind == "ordinal")

    @property
    def selection_metric(self) -> str:
        """The validation metric that selects the step."""
        return (
            self.evaluation.metric or f"val/{self.tasks[0].name}/{METRICS[self.tasks[0].kind][0]}"
        )

    @property
    def selection_direction(self) -> Direction:
        """Whether higher (max) or lower (min) values of `selection_metric` are better."""
        return metric_direction(self.selection_metric) or self.evaluation.direction or "max"


RunName = Annotated[str, Field(pattern=rf"{NAME_PATTERN[:-1]}({TRIAL}[0-9]{{1,4}})?$")]


class RunSpec(Config):
    """One run: a variant with a seed. It is written once, as `spec.json`, and never changed."""

    format: Literal[1] = 1
    grid: Name
    variant: RunName
    config: TrainConfig
    resources: Resources
    data_fingerprint: str = Field(description="fingerprint of the packed data set's contents")

    @property
    def run_id(self) -> str:
        """`<variant>-s<seed>-<8 hexadecimal digits over identity fields and data fingerprint>`."""
        digits = identity_hash(self.config, self.data_fingerprint)
        return f"{self.variant}-s{self.config.seed}-{digits}"


def run_ids(specs: Sequence[RunSpec]) -> list[str]:
    """`run_id` of many runs. It takes a tenth of the time if runs of a row are neighbours."""
    hashes = seeded_hashes(
        [spec.config for spec in specs], [spec.data_fingerprint for spec in specs]
    )
    return [
        f"{spec.variant}-s{spec.config.seed}-{hash_}"
        for spec, hash_ in zip(specs, hashes, strict=True)
    ]


def with_steps(config: TrainConfig, num_samples: int) -> TrainConfig:
    """The config with the steps of its epochs. Without epochs it is the same config.

    Args:
        config: a config.
        num_samples: samples of the train split.
    """
    if config.epochs is None:
        return config
    # Exact: 1.1 epochs of 1000 samples are 1100 samples. As floats they would be a bit more.
    batches = Fraction(repr(config.epochs)) * num_samples / config.global_batch_size
    return config.model_copy(update={"steps": max(1, ceil(batches))})


def check_metric(
    metric: str,
    tasks: tuple[TaskConfig, ...],
    modalities: tuple[str, ...] = (),
    splits: tuple[str, ...] = ("val", "test"),
    own: tuple[str, ...] = (),
) -> None:
    """Raise ConfigError unless a run of these tasks and modalities has this metric.

    Without modalities, metrics that are measured at the end of a run are unknown. `own` has the
    names of the user's own metrics.
    """
    kinds = {task.name: task.kind for task in tasks}
    valid = valid_metrics(tuple(kinds.items()), modalities, splits, own)
    plain, target = split_target(metric)
    # The targets of a regression are in the data: launch/dataset_checks.py checks the name.
    parts = plain.partition("@")[0].split("/")
    if target and parts[-1] in OF_TARGETS and kinds.get("/".join(parts[1:-1])) == "regression":
        metric = plain
    if metric not in valid:
        raise ConfigError(f"unknown metric {metric!r}; {nearest(metric, valid)}")


def accumulation_steps(config: TrainConfig, world_size: int) -> tuple[int, int]:
    """Return (micro_batch_size, gradient_accumulation_steps) for `world_size` processes.

    The value auto counts as the largest micro-batch. The engine replaces it by a number.

    Raises:
        ConfigError: the sizes do not divide. The message has all four numbers.
    """
    total = config.global_batch_size
    micro = max(1, total // world_size)
    if isinstance(config.micro_batch_size, int):
        micro = config.micro_batch_size
    steps, rest = divmod(total, micro * world_size)
    if rest or steps == 0:
        steps = max(1, steps)
        raise ConfigError(
            f"global_batch_size {total} is not micro_batch_size {micro} x "
            f"gradient_accumulation_steps {steps} x world_size {world_size} = "
            f"{steps * micro * world_size}. Choose sizes whose product it is"
        )
    return micro, steps
