"""Check the values of a config against the signature of a class or function, and convert them."""

import inspect
import typing
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.own_code.references import Reference


def checked_arguments(
    target: Callable[..., Any], reference: Reference, num_given: int = 1
) -> dict[str, Any]:
    """The values for a target's parameters, by name.

    If the only parameter is annotated with a pydantic model, that model checks the values.

    Args:
        target: a class or a function.
        reference: names the target, and has the values.
        num_given: parameters that Furnace sets.

    Raises:
        ConfigError: a value is missing, unknown or of another type.
    """
    parameters = list(inspect.signature(target).parameters.values())[num_given:]
    hints = _hints(target)
    if len(parameters) == 1:
        annotation = hints.get(parameters[0].name)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return {parameters[0].name: _validated(annotation, reference)}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        extra: typing.Literal["allow", "forbid"] = "allow"
    else:
        extra = "forbid"
    fields: dict[str, Any] = {
        parameter.name: (hints.get(parameter.name, Any), _default(parameter))
        for parameter in parameters
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    settings = ConfigDict(extra=extra, arbitrary_types_allowed=True, protected_namespaces=())
    model = create_model(reference.name, __config__=settings, **fields)
    checked = _validated(model, reference)
    return {name: getattr(checked, name) for name in reference.arguments}


def _validated(model: type[BaseModel], reference: Reference) -> BaseModel:
    try:
        return model.model_validate(reference.arguments)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()
        )
        raise ConfigError(
            f"{reference.key}: the values for {reference.name} do not fit its parameters "
            f"({problems}). Change them"
        ) from None


def _default(parameter: inspect.Parameter) -> Any:
    if parameter.default is parameter.empty:
        return ...
    return parameter.default


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a target's parameters. Those that cannot be evaluated are left out."""
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError:
        return {}
