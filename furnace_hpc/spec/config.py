"""Typed configuration of one run: everything that decides its numbers, and nothing else that counts as identity.

A field marked `identity: False` changes where or how often something is written, never a number.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from furnace_hpc.spec.deepspeed_file import DeepSpeedFile
from furnace_hpc.spec.errors import ConfigError, nearest
from furnace_hpc.spec.identity import identity_hash

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Beta = Annotated[float, Field(ge=0, lt=1)]
ModalityName = Literal["text", "image", "audio"]
METRICS = {"single_label": ("accuracy", "f1_macro", "loss")}  # what model/scores.py gives for each kind of task
_NUMBERS: tuple[Any, ...] = (int, float, int | None, float | None)
NOT_IDENTITY: dict[str, Any] = {"identity": False}


def _no_duplicates(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError("an entry stands twice: keep one")
    return values


class Config(BaseModel):
    """Base of all configuration: frozen, closed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)  # JSON has no infinity

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, content: Any) -> Any:
        """Refuse what pydantic would turn into a number: `steps: yes` is 1 to it, and `steps: "500"` is 500."""
        for name, value in content.items() if isinstance(content, dict) else ():
            field = cls.model_fields.get(name)
            if field and field.annotation in _NUMBERS and isinstance(value, bool | str):
                raise ValueError(f"{name}: got {value!r}, wanted a number")
        return content


class DataConfig(Config):
    """Which packed data set."""

    name: Name = Field(default="tridigits", description="folder under the data root")


class TaskConfig(Config):
    """One thing to predict: a head, a loss and the label column `label.<name>`."""

    name: Name = Field(description="the label column is `label.<name>`; metrics are `<split>/<name>/<metric>`")
    kind: Literal["single_label"] = Field(default="single_label", description="one class per sample")
    weight: float = Field(default=1.0, gt=0, description="factor of this task's loss in the sum")


class ModelConfig(Config):
    """The fusion network."""

    modalities: Annotated[tuple[ModalityName, ...], AfterValidator(_no_duplicates)] = Field(
        default=("text", "image", "audio"),
        min_length=1,
        description="what the network sees; others build no encoder",
    )
    fusion: Literal["cross_attention"] = Field(default="cross_attention", description="how modalities meet")
    width: int = Field(default=64, ge=8, description="features per token (D)")
    num_heads: int = Field(default=4, ge=1, description="attention heads; divides width")
    feedforward: int = Field(default=128, ge=8, description="hidden width of the feed-forward blocks")
    text_layers: int = Field(default=2, ge=1, description="BERT layers")
    fusion_layers: int = Field(default=1, ge=1, description="attention layers over all modalities' tokens")
    image_tokens: int = Field(default=4, ge=1, description="image tokens (a square number) after adaptive pooling")
    audio_tokens: int = Field(default=4, ge=1, description="audio tokens after pooling over valid frames")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="of hidden features in BERT and the fusion layers")

    @model_validator(mode="after")
    def _divisible(self) -> "ModelConfig":
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if int(self.image_tokens**0.5) ** 2 != self.image_tokens:
            raise ValueError(f"image_tokens {self.image_tokens} is not a square number")
        return self


class LossConfig(Config):
    """total = sum over tasks of weight x cross-entropy + alpha x consistency + beta x norm."""

    alpha: float = Field(
        default=0.0, ge=0, description="weight of the consistency term: pairwise MSE of the pooled features"
    )
    beta: float = Field(
        default=0.0, ge=0, description="weight of the specific term: mean L2 norm of the pooled features"
    )


class OptimizerConfig(Config):
    """torch.optim.AdamW."""

    lr: float = Field(default=3e-3, gt=0, description="peak learning rate")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="decay of the two moments")
    eps: float = Field(default=1e-8, gt=0, description="added to the denominator")
    weight_decay: float = Field(default=0.01, ge=0, description="decoupled weight decay")
    max_grad_norm: float = Field(default=1.0, ge=0, description="gradient clipping by global norm; 0: none")


class ScheduleConfig(Config):
    """Learning rate over the run: linear warm-up, then decay."""

    decay: Literal["cosine", "constant"] = Field(
        default="cosine", description="cosine to 0 at the last step, or constant"
    )
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1, description="part of the steps that warm up from 0")


class EvaluationConfig(Config):
    """When the validation split is looked at, and which step is taken for the test split."""

    every: int = Field(
        default=100, ge=1, description="optimizer steps between evaluations; the last step is evaluated too"
    )
    select: Literal["best", "last"] = Field(
        default="best", description="best: the evaluated step with the best `metric`"
    )
    metric: str | None = Field(default=None, description="val/<task>/<metric>; none: accuracy of the first task")
    batch_size: int = Field(
        default=256, ge=1, json_schema_extra=NOT_IDENTITY, description="samples per forward pass and process"
    )


class TrainConfig(Config):
    """Everything that decides a run's numbers."""

    data: DataConfig = DataConfig()
    tasks: tuple[TaskConfig, ...] = Field(default=(TaskConfig(name="digit"),), min_length=1)
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    deepspeed: DeepSpeedFile = Field(description="the content of a file of ds_configs/ (a grid gives its name)")
    steps: int = Field(default=500, ge=1, description="optimizer steps")
    global_batch_size: int = Field(default=32, ge=1, description="samples per optimizer step, over all processes")
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="samples per forward pass and process; none: global_batch_size / world_size",
    )
    seed: Seed = Field(default=0, description="of initial weights, sample order and dropout")
    deterministic: bool = Field(default=True, description="CUDA: only algorithms that give the same bits each time")
    log_every: int = Field(default=10, ge=1, json_schema_extra=NOT_IDENTITY, description="steps between records")
    checkpoint_every: int = Field(
        default=100, ge=1, json_schema_extra=NOT_IDENTITY, description="steps between checkpoints"
    )
    keep_checkpoints: int = Field(
        default=2, ge=1, json_schema_extra=NOT_IDENTITY, description="newest checkpoints kept"
    )
    checkpoint_in_background: bool = Field(
        default=True,
        json_schema_extra=NOT_IDENTITY,
        description="train on while a checkpoint is written, from a copy of this rank's part in host memory",
    )
    hang_timeout_s: float = Field(
        default=600.0, ge=5, json_schema_extra=NOT_IDENTITY, description="a rank that does not move so long is a hang"
    )

    @model_validator(mode="after")
    def _names(self) -> "TrainConfig":
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"tasks {names}: a name stands twice")
        check_metric(self.selection_metric, self.tasks, splits=("val",))
        return self

    @property
    def selection_metric(self) -> str:
        """The metric, on validation, that selects the step."""
        return self.evaluation.metric or f"val/{self.tasks[0].name}/accuracy"


class Resources(Config):
    """What a run wishes for; never identity. None: the cluster profile's own default."""

    nodes: int | None = Field(default=None, ge=1, le=10_000, description="nodes of one run")
    processes_per_node: int | None = Field(default=None, ge=1, le=1024, description="ranks on each node (one per GPU)")
    timeout_min: int = Field(default=60, ge=1, description="time limit of one attempt, minutes")
    partition: Name | None = Field(default=None, description="instead of the profile's partition")
    max_attempts: int = Field(
        default=20, ge=1, description="starts of one run, requeues counted, before it is given up"
    )
    max_idle_attempts: int = Field(
        default=3, ge=1, description="attempts in a row without a new step before the run is given up"
    )
    max_gpu_hours: float | None = Field(
        default=None, gt=0, description="GPU-hours of all attempts of one run before it is given up; none: no limit"
    )


class RunSpec(Config):
    """One run: a variant with a seed. Written once, as `spec.json`; what happened to it is told by other files."""

    format: Literal[1] = 1
    grid: Name
    variant: Name
    config: TrainConfig
    resources: Resources
    data_fingerprint: str = Field(description="fingerprint of the packed data set's contents")

    @property
    def run_id(self) -> str:
        """`<variant>-s<seed>-<8 hexadecimal digits over identity fields and data fingerprint>`."""
        return f"{self.variant}-s{self.config.seed}-{identity_hash(self.config, self.data_fingerprint)}"


def check_metric(metric: str, tasks: tuple[TaskConfig, ...], splits: tuple[str, ...] = ("val", "test")) -> None:
    """Raise ConfigError unless `metric` is `<split>/<task>/<metric>` of these tasks."""
    valid = [f"{split}/{task.name}/{name}" for split in splits for task in tasks for name in METRICS[task.kind]]
    if metric not in valid:
        raise ConfigError(f"unknown metric {metric!r}; {nearest(metric, valid)}")


def accumulation_steps(config: TrainConfig, world_size: int) -> tuple[int, int]:
    """Return (micro_batch_size, gradient_accumulation_steps) for `world_size` processes.

    Raises:
        ConfigError: the sizes do not divide; the message names all four numbers.
    """
    total = config.global_batch_size
    micro = config.micro_batch_size or max(1, total // world_size)
    steps, rest = divmod(total, micro * world_size)
    if rest or steps == 0:
        raise ConfigError(
            f"global_batch_size {total} is not micro_batch_size {micro} x gradient_accumulation_steps "
            f"{max(1, steps)} x world_size {world_size} = {max(1, steps) * micro * world_size}: "
            f"choose sizes whose product it is"
        )
    return micro, steps
