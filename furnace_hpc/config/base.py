"""The base class of all configuration (frozen, no unknown keys), and the types of its fields.

A field marked `identity: False` changes where or how often something is written, never a number.
A field marked `identity: unless default` is not part of run ids while it has its default.
A field marked `identity: unless epochs` is not part of run ids if the field `epochs` is given.
"""

import hashlib
from copy import copy, deepcopy
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from furnace_hpc.config.parsing.numbers import wanted_number

MAX_NAME = 64
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def short_name(name: Any) -> Any:
    """Shorten a name of more than 64 characters to its beginning and 12 digits of its hash."""
    if not isinstance(name, str) or len(name) <= MAX_NAME:
        return name
    digits = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{name[: MAX_NAME - 13]}-{digits}"


# A long name may be given in full.
RowName = Annotated[str, BeforeValidator(short_name), Field(pattern=NAME_PATTERN)]


def _one_list(value: Any) -> Any:
    """Join `gpu, a40` or a YAML list to the form of Slurm: gpu,a40."""
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
        value = ",".join(value)
    if isinstance(value, str):
        return value.replace(", ", ",")
    return value


OneList = BeforeValidator(_one_list, json_schema_input_type=str | list[str])
Partitions = Annotated[
    str, OneList, Field(pattern=rf"{NAME_PATTERN[:-1]}(,{NAME_PATTERN[1:-1]})*$")
]


def number(value: Any) -> Any:
    """Validate a number. Refuse what pydantic converts to one, such as `yes` (1) and `"500"`."""
    if isinstance(value, (bool, str)):
        raise ValueError(wanted_number("", value))
    return value


Seed = Annotated[int, BeforeValidator(number), Field(ge=0, lt=2**31)]
Beta = Annotated[float, BeforeValidator(number), Field(ge=0, lt=1)]
ModalityName = Literal["text", "image", "audio", "numbers"]
ColumnName = Literal[
    "changes",
    "n",
    "metric",
    "difference",
    "verdict",
    "holm_p",
    "sign_flip_p",
    "effect",
    "hedges_g",
    "improvement",
    "correlation",
    "iqm",
    "train_s",
    "wall_s",
    "samples_per_s_each",
    "peak_memory_gib",
    "model_tflop_s",
    "mfu",
    "data_wait",
    "energy_kj",
    "attempts",
    "lost_steps",
    "hours",
    "goodput",
    "num_parameters",
    "trainable",
    "tuned",
    "tuning_hours",
]
_NUMBERS: tuple[Any, ...] = (int, float, int | None, float | None)
NOT_IDENTITY: dict[str, Any] = {"identity": False}
ADDED_LATER: dict[str, Any] = {"identity": "unless default"}
"""For a field that was added later, with the old behaviour as default. Run ids do not change."""
FROM_EPOCHS: dict[str, Any] = {"identity": "unless epochs"}
"""For a field that follows from `epochs` and the data where `epochs` is given."""


def no_duplicates(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Validate that no entry is a duplicate."""
    if len(set(values)) != len(values):
        raise ValueError("an entry is a duplicate. Keep one")
    return values


class Config(BaseModel):
    """Base of all configuration: frozen, without unknown keys."""

    # JSON has no infinity
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy. Pydantic makes one of a default for each config, so this is fast."""
        copied = copy(self)
        for name, value in vars(self).items():
            if value.__class__ not in _UNCHANGEABLE:
                vars(copied)[name] = deepcopy(value, memo)
        return copied

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what pydantic converts: `steps: yes` to 1, and `steps: "500"` to 500."""
        if value.__class__ in _NOT_NUMBERS and info.field_name in _number_fields(cls):
            raise ValueError(wanted_number(str(info.field_name), value))
        return value

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, content: Any) -> Any:
        """Read a key without a value as an empty list or mapping, such as `axes:`."""
        if not isinstance(content, dict) or all(value is not None for value in content.values()):
            return content
        empty = _empty_by_default(cls)
        return {
            name: value for name, value in content.items() if value is not None or name not in empty
        }


_NOT_NUMBERS = frozenset({bool, str})
_UNCHANGEABLE = frozenset({bool, int, float, str, type(None)})


@cache
def _number_fields(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(
        name for name, field in model.model_fields.items() if field.annotation in _NUMBERS
    )


@cache
def _empty_by_default(model: type[BaseModel]) -> frozenset[str]:
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in model.model_fields.items()
    }
    return frozenset(name for name, default in defaults.items() if default in ((), [], {}))
