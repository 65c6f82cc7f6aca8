"""The section `init_from`: other runs or models that a run takes its first weights from."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from furnace_hpc.config.base import NOT_IDENTITY, Config, RowName

Part = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*$")]


class InitialWeights(Config):
    """One source of initial weights: a row of the same grid, a run, or an exported model."""

    variant: RowName | None = Field(
        default=None,
        json_schema_extra=NOT_IDENTITY,
        description="a row of the same grid: its run with the same pack and seed",
    )
    run: str | None = Field(
        default=None, description="folder of a run. Give an absolute path on a cluster"
    )
    model: str | None = Field(default=None, description="folder of an exported model, likewise")
    parts: tuple[Part, ...] = Field(
        default=(),
        description="beginnings of parameter names, such as encoders.text or fusion [all "
        "parameters, which must then be the same in both networks]",
    )
    run_id: str | None = Field(
        default=None,
        json_schema_extra=NOT_IDENTITY,
        description="the run of `variant`. It is set by the grid",
    )
    identity: str | None = Field(
        default=None,
        description="hash of what decides the numbers of that run. It is set by the grid",
    )

    @model_validator(mode="after")
    def _one_place(self) -> "InitialWeights":
        given = [name for name in ("variant", "run", "model") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(
                f"init_from needs one of variant (a row), run (a folder) and model (a folder), "
                f"got {found}. Keep one"
            )
        return self

    @property
    def name(self) -> str:
        """The source in words."""
        if self.variant:
            return f"row {self.variant}"
        return f"run {self.run}" if self.run else f"model {self.model}"

    def __str__(self) -> str:
        """Source and parts, for the table."""
        parts = f" ({', '.join(self.parts)})" if self.parts else ""
        return f"{self.name}{parts}"


def _as_list(value: Any) -> Any:
    """Accept one mapping in the place of a list."""
    return [value] if isinstance(value, dict) else value


Sources = Annotated[tuple[InitialWeights, ...], BeforeValidator(_as_list)]
