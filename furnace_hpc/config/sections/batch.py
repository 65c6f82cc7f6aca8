"""The type of the key `micro_batch_size`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from furnace_hpc.config.parsing.numbers import wanted_number

AUTO = "auto"  # of micro_batch_size: chosen by the engine


def _micro_batch_size(value: Any) -> Any:
    """Validate a micro-batch size, so that an error has one reason."""
    if value is None or value == AUTO:
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{wanted_number('micro_batch_size', value)}, or auto")
    if value < 1:
        raise ValueError(f"micro_batch_size is {value}. Use at least 1, or auto")
    return value


MicroBatchSize = Annotated[int | Literal["auto"] | None, BeforeValidator(_micro_batch_size)]
