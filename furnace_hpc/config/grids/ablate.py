"""Rows of a grid that are made from factors, each switched on or off."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from furnace_hpc.config.base import Config, Name

Overrides = dict[str, Any]


def _empty_if_none(value: Any) -> Any:
    """Read a row without content (`base:`) as an empty one."""
    return {} if value is None else value


RowOverrides = Annotated[Overrides, BeforeValidator(_empty_if_none)]


class Ablate(Config):
    """Rows made from factors that are switched on and off."""

    mode: Literal["leave_one_out", "one_at_a_time"] = Field(
        description="leave_one_out: rows `full` and `no_<factor>`; "
        "one_at_a_time: rows `base` and `only_<factor>`"
    )
    factors: dict[Name, RowOverrides] = Field(
        min_length=1, max_length=200, description="factor -> the overrides that switch it on"
    )

    def rows(self) -> dict[str, Overrides]:
        """Row name -> overrides, in the order of the file."""
        if self.mode == "one_at_a_time":
            return {"base": {}} | {f"only_{name}": on for name, on in self.factors.items()}
        rows = {"full": _merge(self.factors.values())}
        for left_out in self.factors:
            others = [on for name, on in self.factors.items() if name != left_out]
            rows[f"no_{left_out}"] = _merge(others)
        return rows


def _merge(parts: Iterable[Overrides]) -> Overrides:
    merged: Overrides = {}
    for part in parts:
        merged |= part
    return merged
