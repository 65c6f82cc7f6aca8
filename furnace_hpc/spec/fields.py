"""What all configuration is made of: frozen, closed models, and the types of their fields.

A field marked `identity: False` changes where or how often something is written, never a number.
"""

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def _one_list(value: Any) -> Any:
    """`gpu, a40` or a YAML list as Slurm takes it: gpu,a40."""
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
        value = ",".join(value)
    return value.replace(", ", ",") if isinstance(value, str) else value


OneList = BeforeValidator(_one_list)
Partitions = Annotated[str, OneList, Field(pattern=rf"{NAME_PATTERN[:-1]}(,{NAME_PATTERN[1:-1]})*$")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Beta = Annotated[float, Field(ge=0, lt=1)]
ModalityName = Literal["text", "image", "audio"]
_NUMBERS: tuple[Any, ...] = (int, float, int | None, float | None)
NOT_IDENTITY: dict[str, Any] = {"identity": False}


def no_duplicates(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A validator: every entry stands once."""
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
            if isinstance(value, (bool, str)) and name in _number_fields(cls):
                raise ValueError(f"{name}: got {value!r}, wanted a number")
        return content


@cache
def _number_fields(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(name for name, field in model.model_fields.items() if field.annotation in _NUMBERS)
