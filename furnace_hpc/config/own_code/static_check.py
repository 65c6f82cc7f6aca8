"""Check that files, names and parameters of own code exist, without importing anything.

The source is parsed. So a check needs no torch, runs none of the user's code, and takes a
millisecond. What cannot be seen in the source is accepted here, and checked when a rank starts.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.own_code.references import CLASSES, Reference
from furnace_hpc.config.own_code.sources import OwnCode
from furnace_hpc.config.parsing.text_safety import short
from furnace_hpc.host.regular_file import read_regular

_MODELS = frozenset({"BaseModel", "Config"})  # bases of a pydantic model
_SIMPLE: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
}
_MAX_IMPORTS = 8  # followed from one file of own code to another

_Definition = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True)
class Found:
    """A definition in own code."""

    node: _Definition
    file: Path
    name: str
    """Of the file, below the folder of own code."""

    @property
    def place(self) -> str:
        """The file and line."""
        return f"{self.file}:{self.node.lineno}"


@dataclass(frozen=True)
class Parameter:
    """A parameter that a config may set."""

    name: str
    annotation: str
    """The source text. Empty if there is none."""
    is_required: bool


def check_reference(code: OwnCode, reference: Reference) -> None:
    """Raise ConfigError unless a reference and the values for its parameters fit the source."""
    place = (reference.kind, reference.key, reference.path)
    if place not in code.checked:
        code.checked[place] = _signature(code, reference)
    if signature := code.checked[place]:
        found, valid = signature
        _check_arguments(found, valid, reference)


def _signature(code: OwnCode, reference: Reference) -> tuple[Found, dict[str, Parameter]] | None:
    """A reference's definition and parameters. None if the source does not show them all."""
    found = find(code, reference)
    if found is None:
        return None
    _check_kind(found, reference)
    num_given = {"loss": 1, "metric": 2}.get(reference.kind, 1)
    parameters = parameters_of(code, found, num_given)
    if parameters is None:
        return None
    return found, {parameter.name: parameter for parameter in parameters}


def find(code: OwnCode, reference: Reference) -> Found | None:
    """The definition that a reference names. None if the source does not show one.

    Raises:
        ConfigError: there is no such package, module or name, or a file is not valid Python.
    """
    where = f"{reference.key} is {reference.path}"
    if reference.package not in code.packages:
        raise ConfigError(
            f"{where}, and the grid's code has no package {reference.package!r}. Add it to code; "
            f"{nearest(reference.package, code.packages)}"
        )
    name = _module_file(code, reference.module)
    if name is None:
        raise ConfigError(
            f"{where}, and there is no module {reference.module!r}; "
            f"{nearest(reference.module, _modules(code))}"
        )
    return _definition(code, name, reference.name, where)


def parameters_of(code: OwnCode, found: Found, num_given: int = 1) -> list[Parameter] | None:
    """The parameters that a config may set. None if the source does not show them all.

    Args:
        code: the files.
        found: a class or a function.
        num_given: parameters that Furnace sets, after self.
    """
    function = found.node
    if isinstance(function, ast.ClassDef):
        owner, init = _method(code, found, "__init__")
        if owner is None or init is None:
            return None
        found, function, num_given = owner, init, num_given + 1
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args]
    required = len(named) - len(arguments.defaults)
    rest = [
        (argument, index < required) for index, argument in enumerate(named) if index >= num_given
    ]
    rest += [
        (argument, default is None)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if len(rest) == 1 and (fields := _fields_of_model(code, found, rest[0][0])) is not None:
        return fields
    if arguments.kwarg is not None:
        return None
    return [
        Parameter(argument.arg, _text(argument.annotation), is_required)
        for argument, is_required in rest
    ]


def _check_kind(found: Found, reference: Reference) -> None:
    is_class = isinstance(found.node, ast.ClassDef)
    wants_class = reference.kind in CLASSES
    if is_class == wants_class:
        return
    wanted, got = ("a class", "a function") if wants_class else ("a function", "a class")
    raise ConfigError(
        f"{reference.key} is {reference.path}, which is {got} ({found.place}), wanted {wanted}. "
        f"Name {wanted}"
    )


def _check_arguments(found: Found, valid: Mapping[str, Parameter], reference: Reference) -> None:
    for name, value in reference.arguments.items():
        if name not in valid:
            raise ConfigError(
                f"{reference.key}: {reference.name} has no parameter {short(name)!r} "
                f"({found.place}); {nearest(name, valid)}"
            )
        _check_type(valid[name], value, reference, found)
    missing = [name for name, parameter in valid.items() if parameter.is_required]
    for name in missing:
        if name not in reference.arguments:
            raise ConfigError(
                f"{reference.key}: parameter {name!r} of {reference.name} has no value "
                f"({found.place}). Add it to {argument_key(reference)}"
            )


def argument_key(reference: Reference) -> str:
    """The config key with the values for a reference's parameters."""
    if reference.kind in CLASSES:
        return f"{reference.key}_args"
    return reference.key


def _check_type(parameter: Parameter, value: Any, reference: Reference, found: Found) -> None:
    """Raise ConfigError if a value is not of the parameter's simple type."""
    wanted = _SIMPLE.get(parameter.annotation)
    if wanted is None:
        return
    is_bool = isinstance(value, bool)
    if isinstance(value, wanted) and is_bool == (bool in wanted):
        return
    raise ConfigError(
        f"{reference.key}: parameter {parameter.name!r} of {reference.name} got "
        f"{short(repr(value))}, wanted {parameter.annotation} ({found.place}). Change it in "
        f"{argument_key(reference)}"
    )


def _module_file(code: OwnCode, module: str) -> str | None:
    base = module.replace(".", "/")
    for name in (f"{base}.py", f"{base}/__init__.py"):
        if name in code.files:
            return name
    return None


def _modules(code: OwnCode) -> Iterator[str]:
    for name in code.files:
        if name.endswith(".py"):
            yield name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _definition(code: OwnCode, name: str, wanted: str, where: str, depth: int = 0) -> Found | None:
    """The definition of a name in a file. Imports from own code are followed."""
    file = code.files[name]
    tree = _parsed(file, file.stat().st_mtime_ns)
    names = dict(_top_level(tree))
    node = names.get(wanted)
    if isinstance(node, _Definition):
        return Found(node, file, name)
    if isinstance(node, ast.ImportFrom) and depth < _MAX_IMPORTS:
        original = next(
            (part.name for part in node.names if (part.asname or part.name) == wanted), wanted
        )
        target = _module_file(code, _imported_module(name, node))
        if target is not None:
            return _definition(code, target, original, where, depth + 1)
    is_open = any(isinstance(part, ast.ImportFrom) and part.names[0].name == "*" for part in tree)
    if node is None and not is_open:
        raise ConfigError(f"{where}, and {file} has no {wanted!r}; {nearest(wanted, names)}")
    return None


def _imported_module(name: str, node: ast.ImportFrom) -> str:
    """The full name of the module that an import names, which may be relative."""
    if not node.level:
        return node.module or ""
    folders = name.split("/")[: -node.level]
    return ".".join([*folders, *filter(None, [node.module])])


@lru_cache(maxsize=256)
def _parsed(file: Path, mtime_ns: int) -> tuple[ast.stmt, ...]:
    """The statements of a file. `mtime_ns` is its version, for the cache."""
    try:
        return tuple(ast.parse(read_regular(file), str(file)).body)
    except SyntaxError as error:
        raise ConfigError(
            f"{file}:{error.lineno}: not valid Python: {error.msg}. Correct this line"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{file}: not valid Python: {error}. Save it as UTF-8") from None


def _top_level(statements: tuple[ast.stmt, ...]) -> Iterator[tuple[str, ast.stmt]]:
    """(name, statement) of everything that a module defines or imports."""
    for statement in statements:
        match statement:
            case ast.ClassDef() | ast.FunctionDef():
                yield statement.name, statement
            case ast.ImportFrom() | ast.Import():
                for part in statement.names:
                    yield part.asname or part.name.partition(".")[0], statement
            case ast.Assign():
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        yield target.id, statement
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, statement
            case ast.If() | ast.Try():
                yield from _top_level(tuple(statement.body))


def _method(
    code: OwnCode, found: Found, name: str, depth: int = 0
) -> tuple[Found | None, ast.FunctionDef | None]:
    """The class that defines a method, itself or a base of own code, and the method."""
    assert isinstance(found.node, ast.ClassDef)
    for statement in found.node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            return found, statement
    for base in found.node.bases:
        if isinstance(base, ast.Name) and depth < _MAX_IMPORTS:
            parent = _local_class(code, found, base.id)
            if parent is not None:
                return _method(code, parent, name, depth + 1)
    return None, None


def _local_class(code: OwnCode, found: Found, name: str) -> Found | None:
    """A class of own code that a file defines or imports. None if it is of another package."""
    try:
        parent = _definition(code, found.name, name, "")
    except ConfigError:
        return None
    if parent is None or not isinstance(parent.node, ast.ClassDef):
        return None
    return parent


def _fields_of_model(code: OwnCode, found: Found, argument: ast.arg) -> list[Parameter] | None:
    """The fields of a pydantic model that annotates a parameter. None if it is no such model."""
    model = _local_class(code, found, _text(argument.annotation))
    if model is None or not isinstance(model.node, ast.ClassDef):
        return None
    bases = {_text(base).rpartition(".")[2] for base in model.node.bases}
    if not bases & _MODELS:
        return None
    return [
        Parameter(field.target.id, _text(field.annotation), field.value is None)
        for field in model.node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    ]


def _text(node: ast.expr | None) -> str:
    return ast.unparse(node) if node is not None else ""
