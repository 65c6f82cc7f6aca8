"""Read and write YAML without its guesses, and with limits on size.

YAML 1.1 reads `0100` as 64, `1:30` as 90 and `2026-11-28` as a date. Here these are text. A field that wants a number
refuses them and shows what was typed. `1e3` is a number here, which YAML 1.1 reads as text.
"""

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import yaml

from furnace_hpc.config.parsing.text_safety import short

MAX_DEPTH = 32
MAX_NODES = 100_000  # with every alias unfolded: ten lines of aliases can mean a billion entries
MAX_NUMBER = 100  # characters of a number: a longer one is a mistake or an attack
MAX_KEY = 500  # characters of a key
_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_KINDS = {
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
    "timestamp": "a date",
}
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_INT = re.compile(
    r"^[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*|0x[0-9a-fA-F]+(?:_[0-9a-fA-F]+)*|0b[01]+(?:_[01]+)*)$"
)
_FLOAT = re.compile(
    rf"^[-+]?(?:{_DIGITS}\.(?:{_DIGITS})?(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|{_DIGITS}[eE][-+]?[0-9]+"
    r"|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)
Path = tuple[str | int, ...]  # keys, and places in lists


def load(text: str) -> Any:
    """Parse one document.

    Raises:
        yaml.YAMLError: it is not valid, or beyond the limits.
    """
    try:
        _check_limits(text)
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_keys(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeError:
        raise yaml.YAMLError("a character is no Unicode text") from None
    except (
        ValueError,
        OverflowError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as error:
        raise yaml.YAMLError(f"a value means nothing: {error}") from None  # `!!bool x`, say


def dump(content: Any, **options: Any) -> str:
    """Write plain data so that `load`, and any reader of YAML 1.1, gives the same data back."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, **options))


def entries(text: str) -> Iterator[tuple[Path, str | None, Any, int]]:
    """(path, text, value, line) of every entry of a document that `load` takes; aliases and merges are unfolded.

    `text` is what was typed, without quotes. It is None, and so is the value, for a mapping or a list.
    """
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            yield from _entries(loader, node, ())
    finally:
        loader.dispose()


def _entries(loader: Any, node: Any, path: Path) -> Iterator[tuple[Path, str | None, Any, int]]:
    is_scalar = isinstance(node, yaml.ScalarNode)
    yield (
        path,
        node.value if is_scalar else None,
        loader.construct_object(node) if is_scalar else None,
        _line(node),
    )
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _entries(loader, item, (*path, number))
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag == _MERGE:
                for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    yield from _entries(loader, merged, path)
            else:
                yield from _entries(loader, value, (*path, key.value))


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _check_limits(text: str) -> None:
    """Count the nodes as they would be with aliases unfolded, before anything is built."""
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    count = 0
    event: Any
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in opened):
                where: Any = event.start_mark  # its stub says more than MarkedYAMLError's takes
                raise yaml.MarkedYAMLError(
                    None, None, "an alias stands inside of what it means", where
                )
            count += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = count - before
        if len(opened) > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                None, None, f"nested more than {MAX_DEPTH} deep", event.start_mark
            )
        if count > MAX_NODES:
            words = f"more than {MAX_NODES:,} entries, aliases unfolded"
            raise yaml.MarkedYAMLError(None, None, words, event.start_mark)


def _check_keys(root: Any) -> None:
    """Every key is text, to this reader and to readers of YAML 1.1, and occurs once in its mapping."""
    nodes, seen = [root], {id(root)}
    while nodes:
        node = nodes.pop()
        children = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            keys = set[str]()
            for key, _ in node.value:
                if key.tag != _MERGE:
                    _check_key(key, keys)
                    keys.add(key.value)
            children = [value for _, value in node.value]
        for child in children:
            if isinstance(child, yaml.CollectionNode) and id(child) not in seen:
                seen.add(id(child))
                nodes.append(child)


def _check_key(key: Any, before: set[str]) -> None:
    if not isinstance(key, yaml.ScalarNode):
        raise yaml.MarkedYAMLError(None, None, "a key must be a word", key.start_mark)
    tag = (
        key.tag
        if key.style or key.tag != f"{_TAG}str"
        else _YAML_1_1.resolve(yaml.ScalarNode, key.value, (True, False))
    )
    if kind := _KINDS.get(tag.removeprefix(_TAG)):
        raise yaml.MarkedYAMLError(
            None,
            None,
            f"key {short(key.value)} is {kind} to YAML: put it in quotes to make it text, '{short(key.value)}' "
            f"(names have letters, digits, '.', '_' and '-' only)",
            key.start_mark,
        )
    if len(key.value) > MAX_KEY:
        problem = f"key {short(key.value, 24)} has {len(key.value):,} characters, more than {MAX_KEY}: shorten it"
        raise yaml.MarkedYAMLError(None, None, problem, key.start_mark)
    if key.value in before:
        problem = f"key {short(repr(key.value))} stands twice in one mapping: keep one"
        raise yaml.MarkedYAMLError(None, None, problem, key.start_mark)


def _number(node: Any, kind: str, read: Any) -> Any:
    text = node.value
    if len(text) > MAX_NUMBER:
        words = f"{short(text, 24)} is a number of {len(text):,} characters: put it in quotes if it is text"
    elif not (_INT.match(text) or (kind == "float" and _FLOAT.match(text))):  # `!!int x`
        words = f"{text!r} is not {'an integer' if kind == 'int' else 'a number'}"
    else:
        value = read(text.replace("_", "").lower())
        if kind == "float" or -(2**63) <= value < 2**63:
            return value
        words = (
            f"{text} is beyond 64 bits: give a smaller number, or put it in quotes if it is text"
        )
    raise yaml.constructor.ConstructorError(None, None, words, node.start_mark)


def _read_int(text: str) -> int:
    base = 16 if "0x" in text else 2 if "0b" in text else 10
    return int(text, base)


def _read_float(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_YAML_1_1: Any = yaml.SafeLoader("")
_KEPT_TAGS = ("null", "bool", "str", "seq", "map")
_safe = yaml.SafeLoader.yaml_constructors


class _StrictLoader(_Loader):  # type: ignore[misc]
    """SafeLoader with fewer types: text, numbers, true and false, null, lists, mappings."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        f"{_TAG}{kind}": _safe[f"{_TAG}{kind}"] for kind in _KEPT_TAGS
    } | {
        f"{_TAG}int": lambda _, node: _number(node, "int", _read_int),
        f"{_TAG}float": lambda _, node: _number(node, "float", _read_float),
        _MERGE: _safe[f"{_TAG}str"],  # `<<` in place of a value is text
        None: _safe[None],
    }
    yaml_implicit_resolvers = {
        first: [
            (tag, pattern)
            for tag, pattern in found
            if tag.removeprefix(_TAG) in {"null", "bool", "merge"}
        ]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which `load` would read as a number."""

    yaml_implicit_resolvers = {
        first: list(found) for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _class in (_StrictLoader, _Dumper):
    for _first in "-+.0123456789":
        _found = _class.yaml_implicit_resolvers.setdefault(_first, [])
        _found += [(f"{_TAG}int", _INT), (f"{_TAG}float", _FLOAT)]
