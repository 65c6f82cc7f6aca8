"""Rows of a grid that are made from factors, each switched on or off."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from furnace_hpc.config.base import Config, Name

Overrides = dict[str, Any]
# `base:`
RowOverrides = Annotated[Overrides, BeforeValidator(lambda value: {} if value is None else value)]


class Ablate(Config):
    """Rows made from factors that are switched on and off."""

    mode: Literal["leave_one_out", "one_at_a_time"] = Field(
        description="leave_one_out: `full` and a `no_<factor>` each; one_at_a_time: `base` and an `only_<factor>` each"
    )
    factors: dict[Name, RowOverrides] = Field(
        min_length=1, max_length=200, description="factor -> the overrides that switch it on"
    )

    def rows(self) -> dict[str, Overrides]:
        """Row name -> overrides, in the file's order."""
        if self.mode == "one_at_a_time":
            return {"base": {}} | {f"only_{name}": on for name, on in self.factors.items()}
        rows = {"full": _merge(self.factors.values())}
        for left_out in self.factors:
            rows[f"no_{left_out}"] = _merge(
                on for name, on in self.factors.items() if name != left_out
            )
        return rows


def _merge(parts: Any) -> Overrides:
    merged: Overrides = {}
    for part in parts:
        merged |= part
    return merged
