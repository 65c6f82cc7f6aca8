"""The section `ema`."""

from pydantic import Field

from furnace_hpc.config.base import Config


class EmaConfig(Config):
    """Exponential moving average of the weights, which is evaluated, selected and exported."""

    decay: float = Field(
        gt=0,
        lt=1,
        description="share of the average that a step keeps. After step t it is at most (1 + t) / "
        "(10 + t)",
    )
