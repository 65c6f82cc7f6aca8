"""The section `loss`."""

from pydantic import Field, field_validator

from furnace_hpc.config.base import ADDED_LATER, Config
from furnace_hpc.config.own_code.references import ImportPath, LossTerm, short_names

# The names of terms in the metrics, and that of their sum.
BUILT_IN = frozenset({"loss", "consistency", "norm", "info_nce", "vicreg", "unimodal"})


class LossConfig(Config):
    """Loss: sum of weight x task loss, + alpha x consistency, + beta x norm, + other terms."""

    alpha: float = Field(
        default=0.0,
        ge=0,
        description="weight of the consistency term: pairwise MSE of the pooled features",
    )
    beta: float = Field(
        default=0.0,
        ge=0,
        description="weight of the specific term: mean L2 norm of the pooled features",
    )
    info_nce: float = Field(
        default=0.0,
        ge=0,
        description="weight of InfoNCE between the projections of each two modalities, over the "
        "micro-batches of all processes. So accumulation gives another loss than one large batch",
    )
    projection_width: int = Field(
        default=64,
        ge=2,
        description="width of the projections of InfoNCE, which are normalised, and of the "
        "expanders of VICReg",
    )
    temperature: float = Field(
        default=0.07, gt=0.01, description="InfoNCE: initial value of the learnt temperature"
    )
    unimodal: float = Field(
        default=0.0,
        ge=0,
        description="weight of the mean loss of heads with one present modality each",
    )
    vicreg: float = Field(
        default=0.0,
        ge=0,
        json_schema_extra=ADDED_LATER,
        description="weight of VICReg between each two modalities, over the same samples as "
        "`info_nce`",
    )
    vicreg_invariance: float = Field(
        default=25.0,
        ge=0,
        json_schema_extra=ADDED_LATER,
        description="VICReg: weight of the mean squared difference",
    )
    vicreg_variance: float = Field(
        default=25.0,
        ge=0,
        json_schema_extra=ADDED_LATER,
        description="VICReg: weight of the hinge on deviations",
    )
    vicreg_covariance: float = Field(
        default=1.0,
        ge=0,
        json_schema_extra=ADDED_LATER,
        description="VICReg: weight of the squared covariances",
    )
    vicreg_gamma: float = Field(
        default=1.0,
        gt=0,
        json_schema_extra=ADDED_LATER,
        description="VICReg: deviation that each feature should have",
    )

    extra: dict[ImportPath, LossTerm] = Field(
        default={},
        max_length=20,
        json_schema_extra=ADDED_LATER,
        description="your own terms: package.module:function of the grid's `code` -> weight, or "
        "{weight: 0.1, PARAMETER: VALUE}",
    )

    @field_validator("extra")
    @classmethod
    def _different_names(cls, extra: dict[str, LossTerm]) -> dict[str, LossTerm]:
        for name in short_names(extra):
            if name in BUILT_IN:
                raise ValueError(f"{name} is the name of a built-in term. Rename the function")
        return extra

    @property
    def compares_samples(self) -> tuple[str, ...]:
        """The terms in use that compare samples of a micro-batch. They depend on the batch size."""
        return tuple(term for term in ("info_nce", "vicreg") if getattr(self, term))
