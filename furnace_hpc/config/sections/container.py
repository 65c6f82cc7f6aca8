"""The section `container` of a cluster profile: the image in which ranks run."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from furnace_hpc.config.base import Config
from furnace_hpc.host.container.command import find_odd_character

ISOLATING = frozenset({"--cleanenv", "-e", "--containall", "-C"})


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("is not an absolute path. Begin it with /")
    return text


def _plain(text: str) -> str:
    if odd := find_odd_character(text):
        raise ValueError(
            f"contains {odd!r}, which the arguments of a container cannot have. Rename the file or "
            f"folder"
        )
    return text


def _mount(text: str) -> str:
    source, *rest = text.split(":")
    for path in (source, *rest[:1]):
        _absolute(path)
        _plain(path)
    if len(rest) > 2 or rest[1:] not in ([], ["ro"], ["rw"]):
        raise ValueError("is not SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro")
    return text


Image = Annotated[str, Field(max_length=1000), AfterValidator(_absolute), AfterValidator(_plain)]
Mount = Annotated[str, Field(max_length=1000), AfterValidator(_mount)]


class Container(Config):
    """The image in which the ranks of each run start. The batch script stays on the host."""

    image: Image = Field(
        description="absolute path of the image: .sif for apptainer, .sqsh for pyxis"
    )
    runtime: Literal["apptainer", "pyxis"] = Field(
        description="apptainer: `apptainer exec` in each rank; pyxis: srun's --container-image"
    )
    mounts: tuple[Mount, ...] = Field(
        default=(),
        description="further folders inside: SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro. Runs, "
        "data, scratch and the working directory are there by themselves",
    )
    args: tuple[Annotated[str, Field(max_length=1000)], ...] = Field(
        default=(), description="further arguments of `apptainer exec`, or of srun for pyxis"
    )

    @model_validator(mode="after")
    def _keeps_the_job(self) -> "Container":
        taken = [word for word in self.args if word.partition("=")[0] in ISOLATING]
        if taken and self.runtime == "apptainer":
            raise ValueError(
                f"args has {taken[0]}, which hides the job's environment from the ranks. Remove it"
            )
        if self.runtime == "pyxis" and self.image.endswith(".sif"):
            raise ValueError(
                f"image {self.image} is a SIF image, which pyxis cannot start. Use runtime: "
                f"apptainer, or convert the image with `enroot import`"
            )
        return self
