"""Typed configuration of one run: everything that decides its numbers, and nothing else that counts as identity.

A field marked `identity: False` changes where or how often something is written, never a number.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from furnace_hpc.spec.deepspeed_file import DeepSpeedFile
from furnace_hpc.spec.errors import ConfigError, nearest
from furnace_hpc.spec.identity import identity_hash
from furnace_hpc.spec.metrics import METRICS, metric_names

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Beta = Annotated[float, Field(ge=0, lt=1)]
ModalityName = Literal["text", "image", "audio"]
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
    kind: Literal["single_label", "multi_label"] = Field(
        default="single_label",
        description="single_label: one class per sample, cross-entropy; multi_label: any number, binary cross-entropy",
    )
    weight: float = Field(default=1.0, gt=0, description="factor of this task's loss in the sum")


class ModelConfig(Config):
    """The fusion network."""

    modalities: Annotated[tuple[ModalityName, ...], AfterValidator(_no_duplicates)] = Field(
        default=("text", "image", "audio"),
        min_length=1,
        description="what the network sees; others build no encoder",
    )
    fusion: Literal["concat", "gated", "low_rank", "cross_attention", "bottleneck"] = Field(
        default="cross_attention", description="how modalities meet (model/fusion.py, model/attention.py)"
    )
    width: int = Field(default=64, ge=8, description="features per token (D)")
    num_heads: int = Field(default=4, ge=1, description="attention heads; divides width")
    feedforward: int = Field(default=128, ge=8, description="hidden width of the feed-forward blocks")
    fusion_layers: int = Field(
        default=1,
        ge=0,
        description="attention layers of cross_attention and bottleneck; bottleneck with 0: late fusion",
    )
    rank: int = Field(default=8, ge=1, description="low_rank: number of factors (R)")
    bottleneck_tokens: int = Field(default=4, ge=1, description="bottleneck: tokens through which modalities meet")
    text_layers: int = Field(default=2, ge=1, description="BERT layers, where the weights are random")
    image_encoder: Literal["cnn", "vit"] = Field(default="cnn", description="convolutions, or transformers' ViT")
    image_tokens: int = Field(default=4, ge=1, description="cnn: tokens (a square number) after adaptive pooling")
    image_layers: int = Field(default=2, ge=1, description="vit: layers, where the weights are random")
    image_patch: int = Field(default=8, ge=1, description="vit: pixels of a patch's side, where the weights are random")
    audio_encoder: Literal["cnn", "transformer"] = Field(
        default="cnn", description="convolutions, or transformers' audio spectrogram transformer"
    )
    audio_tokens: int = Field(default=4, ge=1, description="cnn: tokens after pooling over valid frames")
    audio_layers: int = Field(default=2, ge=1, description="transformer: layers, where the weights are random")
    audio_patch: int = Field(
        default=8, ge=1, description="transformer: coefficients and frames of a patch, where the weights are random"
    )
    text_weights: str | None = Field(
        default=None, description="a folder, or a name in the hub cache, of a trained BERT; none: random weights"
    )
    image_weights: str | None = Field(default=None, description="vit: the same")
    audio_weights: str | None = Field(default=None, description="transformer: the same")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="of hidden features in encoders and fusion layers")
    modality_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="in training, each present modality is hidden so often; never all of them"
    )

    @model_validator(mode="after")
    def _divisible(self) -> "ModelConfig":
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if int(self.image_tokens**0.5) ** 2 != self.image_tokens:
            raise ValueError(f"image_tokens {self.image_tokens} is not a square number")
        return self

    @model_validator(mode="after")
    def _parts_that_fit(self) -> "ModelConfig":
        if self.fusion == "cross_attention" and self.fusion_layers == 0:
            raise ValueError("fusion cross_attention needs fusion_layers 1 or more, got 0")
        if self.fusion == "bottleneck" and self.fusion_layers == 1:
            raise ValueError(
                "fusion bottleneck with fusion_layers 1 never lets modalities meet (what a layer puts into the "
                "bottleneck is read by the next one): give 2 or more, or 0 for late fusion"
            )
        if self.image_weights and self.image_encoder != "vit":
            raise ValueError("image_weights are a ViT's: set image_encoder: vit")
        if self.audio_weights and self.audio_encoder != "transformer":
            raise ValueError("audio_weights are an audio spectrogram transformer's: set audio_encoder: transformer")
        return self


class LossConfig(Config):
    """total = sum over tasks of weight x task loss, + alpha x consistency + beta x norm, + the two terms below."""

    alpha: float = Field(
        default=0.0, ge=0, description="weight of the consistency term: pairwise MSE of the pooled features"
    )
    beta: float = Field(
        default=0.0, ge=0, description="weight of the specific term: mean L2 norm of the pooled features"
    )
    info_nce: float = Field(
        default=0.0,
        ge=0,
        description="weight of InfoNCE between each two modalities' projections, over the samples of all processes "
        "(of one micro-batch: accumulation makes another loss than one big batch)",
    )
    projection_width: int = Field(
        default=64, ge=2, description="InfoNCE: width of the projections; they are normalised"
    )
    temperature: float = Field(default=0.07, gt=0.01, description="InfoNCE: where the learnt temperature begins")
    unimodal: float = Field(
        default=0.0, ge=0, description="weight of the mean loss of heads that see one present modality each"
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
    metric: str | None = Field(
        default=None, description="val/<task>/<metric>; none: accuracy of the first task, map where it is multi_label"
    )
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
    keep_every: int | None = Field(
        default=None, ge=1, json_schema_extra=NOT_IDENTITY, description="checkpoints of its multiples are never deleted"
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
        if "consistency" in names:
            raise ValueError("task 'consistency': metrics have this name for what modalities share; choose another")
        check_metric(self.selection_metric, self.tasks, splits=("val",))
        if self.loss.info_nce and len(self.model.modalities) < 2:
            raise ValueError(f"loss.info_nce compares modalities, and model.modalities is {self.model.modalities}")
        return self

    @property
    def selection_metric(self) -> str:
        """The metric, on validation, that selects the step."""
        return self.evaluation.metric or f"val/{self.tasks[0].name}/{METRICS[self.tasks[0].kind][0]}"


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


def check_metric(
    metric: str,
    tasks: tuple[TaskConfig, ...],
    modalities: tuple[str, ...] = (),
    splits: tuple[str, ...] = ("val", "test"),
) -> None:
    """Raise ConfigError unless a run of these tasks (and modalities, for what is measured at its end) has `metric`."""
    valid = metric_names({task.name: task.kind for task in tasks}, modalities, splits)
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
