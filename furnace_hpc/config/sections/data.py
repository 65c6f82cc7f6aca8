"""The section `data`."""

from typing import Literal

from pydantic import Field

from furnace_hpc.config.base import Config, Name


class DataConfig(Config):
    """The packed data set, and the order of its samples."""

    name: Name = Field(default="tridigits", description="folder under the data root")
    sampling: Literal["permutation", "weighted"] = Field(
        default="permutation",
        description="permutation: each sample once per epoch; weighted: drawn with replacement, by "
        "the set's column sampling_weight",
    )
