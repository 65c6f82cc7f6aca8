"""Import paths in a config, `package.module:Name`, and the values for their parameters."""

import re
from collections.abc import Iterable
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator

from furnace_hpc.config.errors import nearest
from furnace_hpc.config.parsing.text_safety import short

if TYPE_CHECKING:
    from furnace_hpc.config.train_config import TrainConfig

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
IMPORT_PATH = re.compile(rf"({_NAME}(?:\.{_NAME})*):({_NAME})")
RANDOM = "random"  # `random:roberta` is an encoder with random weights, and no import path

# The keys `loss.extra` and `evaluation.extra` map import paths. No package has these names.
SECTIONS_OF_PATHS = ("loss", "evaluation", "extra")

Kind = Literal["network", "fusion", "encoder", "loss", "metric"]
CLASSES: tuple[Kind, ...] = ("network", "fusion", "encoder")  # the others are functions


class Reference(NamedTuple):
    """One place in a config that names own code."""

    kind: Kind
    key: str
    """The config key, such as model.fusion."""
    path: str
    """The import path."""
    arguments: dict[str, Any]

    @property
    def module(self) -> str:
        """The dotted name of the module."""
        return self.path.partition(":")[0]

    @property
    def name(self) -> str:
        """The name in the module."""
        return self.path.partition(":")[2]

    @property
    def package(self) -> str:
        """The first part of the module's name: an entry of the grid's `code`."""
        return self.module.partition(".")[0]


def is_import_path(text: object) -> bool:
    """Whether a value has the form `package.module:Name`."""
    if not isinstance(text, str) or text.startswith(f"{RANDOM}:"):
        return False
    return IMPORT_PATH.fullmatch(text) is not None


def import_path(text: str) -> str:
    """Validate an import path."""
    if not is_import_path(text):
        raise ValueError("wanted an import path. Write package.module:Name")
    return text


ImportPath = Annotated[str, AfterValidator(import_path)]


def _check_plain(value: Any) -> None:
    """Raise ValueError unless JSON has this value. A run reads its arguments from JSON."""
    match value:
        case dict():
            for part in value.values():
                _check_plain(part)
        case list() | tuple():
            for part in value:
                _check_plain(part)
        case None | bool() | int() | str():
            pass
        case float() if isfinite(value):
            pass
        case _:
            raise ValueError(
                f"a parameter is {short(str(value))}. Write text, true, false, or a finite number"
            )


def _plain_values(arguments: dict[str, Any]) -> dict[str, Any]:
    _check_plain(arguments)
    return arguments


Arguments = Annotated[dict[str, Any], AfterValidator(_plain_values)]
WEIGHT = "weight"  # key of an entry of `loss.extra` with parameters


def _loss_term(value: Any) -> Any:
    """Validate a weight, or a mapping with the key `weight` and parameters."""
    weight = value.get(WEIGHT) if isinstance(value, dict) else value
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0:
        raise ValueError("wanted a weight above 0, or {weight: 0.1, PARAMETER: VALUE}")
    _check_plain(value)
    return value if isinstance(value, dict) else float(weight)


LossTerm = Annotated[float | dict[str, Any], BeforeValidator(_loss_term)]


def name_or_import_path(text: str, names: tuple[str, ...]) -> str:
    """Validate one of the built-in names, or an import path."""
    if text in names or is_import_path(text):
        return text
    if ":" in text:
        return import_path(text)
    raise ValueError(
        f"no such name {short(text)!r}; {nearest(text, names)}, or package.module:Name"
    )


def references(config: "TrainConfig") -> list[Reference]:
    """Everything that a run's config names of the grid's own code."""
    model, found = config.model, list[Reference]()
    if model.network is not None:
        found.append(Reference("network", "model.network", model.network, model.network_args))
    if is_import_path(model.fusion):
        found.append(Reference("fusion", "model.fusion", model.fusion, model.fusion_args))
    for modality in model.modalities:
        section = getattr(model, modality, None)
        if section is not None and is_import_path(section.encoder):
            key = f"model.{modality}.encoder"
            found.append(Reference("encoder", key, section.encoder, section.encoder_args))
    found += [loss_reference(path, term) for path, term in config.loss.extra.items()]
    found += [metric_reference(*item) for item in config.evaluation.extra.items()]
    return found


def loss_reference(path: str, term: LossTerm) -> Reference:
    """The reference of an entry of `loss.extra`."""
    arguments = {} if isinstance(term, float) else term
    arguments = {name: value for name, value in arguments.items() if name != WEIGHT}
    return Reference("loss", "loss.extra", path, arguments)


def loss_weight(term: LossTerm) -> float:
    """The weight of an entry of `loss.extra`."""
    return float(term if isinstance(term, float) else term[WEIGHT])


def metric_reference(path: str, arguments: dict[str, Any]) -> Reference:
    """The reference of an entry of `evaluation.extra`."""
    return Reference("metric", "evaluation.extra", path, arguments)


def short_names(paths: Iterable[str]) -> list[str]:
    """The names of functions without their modules.

    Raises:
        ValueError: two of them are equal.
    """
    names = [path.partition(":")[2] for path in paths]
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise ValueError(f"two functions have the name {twice[0]!r}. Rename one")
    return names
