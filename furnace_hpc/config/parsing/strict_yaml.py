"""Read and write YAML without its guesses, and with limits on size.

YAML 1.1 reads `0100` as 64, `1:30` as 90 and `2026-11-28` as a date. Here these are text. A field
that wants a number refuses them and shows what was typed. YAML 1.1 reads `1e3` as text. Here it is
a number.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, ClassVar

import yaml

from furnace_hpc.config.parsing.text_safety import short

MAX_DEPTH = 32
MAX_NODES = 100_000  # with aliases expanded: ten lines of aliases can mean a billion entries
MAX_NUMBER = 100  # characters of a number; a longer one is a mistake or an attack
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
    rf"^[-+]?(?:{_DIGITS}\.(?:{_DIGITS})?(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
    rf"|{_DIGITS}[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)
_PLAIN_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What PyYAML raises for content that does not fit its tag.
_LOADER_ERRORS = (ValueError, OverflowError, TypeError, KeyError, AttributeError, RecursionError)
Path = tuple[str | int, ...]  # keys of mappings, and indices of lists


def load(text: str) -> Any:
    """Parse one document.

    Raises:
        yaml.YAMLError: it is not valid, or exceeds a limit.
    """
    try:
        _check_limits(text)
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if isinstance(node, yaml.CollectionNode):
                _check_keys(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeError:
        raise yaml.YAMLError("a character is not valid Unicode") from None
    except _LOADER_ERRORS as error:
        raise yaml.YAMLError(f"a value cannot be read: {error}") from None  # such as `!!bool x`


def dump(content: Any, **options: Any) -> str:
    """Write plain data. `load` and any reader of YAML 1.1 give the same data back."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, **options))


def entries(text: str) -> Iterator[tuple[Path, str | None, Any, int]]:
    """Yield (path, text, value, line) of every entry. Aliases and merges are expanded.

    `text` is what was typed, without quotes. Text and value of a mapping or a list are None.
    """
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            yield from _entries(loader, node, ())
    finally:
        loader.dispose()


def _entries(loader: Any, node: Any, path: Path) -> Iterator[tuple[Path, str | None, Any, int]]:
    line = int(node.start_mark.line) + 1
    if isinstance(node, yaml.ScalarNode):
        yield path, node.value, loader.construct_object(node), line
        return
    yield path, None, None, line
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _entries(loader, item, (*path, index))
        return
    for key, value in node.value:
        if key.tag != _MERGE:
            yield from _entries(loader, value, (*path, key.value))
        elif isinstance(value, yaml.SequenceNode):  # `<<: [*a, *b]`
            for merged in value.value:
                yield from _entries(loader, merged, path)
        else:
            yield from _entries(loader, value, path)


def _check_limits(text: str) -> None:
    """Count the nodes with aliases expanded, before anything is built."""
    sizes: dict[str, int] = {}  # anchor -> nodes
    opened: list[tuple[str | None, int]] = []  # (anchor, nodes before it)
    count = 0
    event: Any
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in opened):
                raise _error_at(
                    event, "an alias is inside of the value that it stands for. Remove it"
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
            raise _error_at(event, f"nested more than {MAX_DEPTH} deep. Use fewer levels")
        if count > MAX_NODES:
            raise _error_at(
                event, f"more than {MAX_NODES:,} entries, with aliases expanded. Use fewer"
            )


def _error_at(node: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, node.start_mark)


def _check_keys(root: Any) -> None:
    """Check that every key is text, also to readers of YAML 1.1, and occurs once in its mapping."""
    nodes, seen = [root], {id(root)}
    while nodes:
        node = nodes.pop()
        children = node.value
        if isinstance(node, yaml.MappingNode):
            _check_keys_of(node)
            children = [value for _, value in node.value]
        for child in children:
            if isinstance(child, yaml.CollectionNode) and id(child) not in seen:
                seen.add(id(child))
                nodes.append(child)


def _check_keys_of(mapping: Any) -> None:
    before = set[str]()
    for key, _ in mapping.value:
        if key.tag == _MERGE:
            continue
        _check_key(key)
        if key.value in before:
            name = short(repr(key.value))
            raise _error_at(key, f"key {name} is a duplicate in its mapping. Keep one")
        before.add(key.value)


def _check_key(key: Any) -> None:
    if not isinstance(key, yaml.ScalarNode):
        raise _error_at(key, "a key must be a word. Write text before the colon")
    text = key.value
    if kind := _KINDS.get(_tag_of(key).removeprefix(_TAG)):
        raise _error_at(key, f"key {short(text)} is {kind} in YAML. {_other_key(text)}")
    if len(text) > MAX_KEY:
        size = f"{len(text):,} characters, more than {MAX_KEY}"
        raise _error_at(key, f"key {short(text, 24)} has {size}. Shorten it")


def _tag_of(key: Any) -> str:
    """The tag of a key, in YAML 1.1 if this reader takes it for text."""
    if key.style or key.tag != f"{_TAG}str":
        return str(key.tag)
    return _tag_in_1_1(key.value)


@lru_cache(maxsize=4096)  # most keys are repeated in each row
def _tag_in_1_1(text: str) -> str:
    return str(_YAML_1_1.resolve(yaml.ScalarNode, text, (True, False)))


def _other_key(text: str) -> str:
    """What to write in place of a key that is not text."""
    if _PLAIN_KEY.fullmatch(text):
        return f"Write it in quotes: '{short(text)}'"
    rule = "It has letters, digits, '.', '_' or '-', and begins with a letter or digit"
    return f"Choose another key. {rule}"


def _read_int(loader: Any, node: Any) -> int:
    text = node.value
    _check_number(node, _INT.match(text), "an integer")
    value = int(text.replace("_", ""), 0)
    if not -(2**63) <= value < 2**63:
        fix = "Give a smaller number, or put it in quotes if it is text"
        raise _number_error(node, f"{text} does not fit in 64 bits. {fix}")
    return value


def _read_float(loader: Any, node: Any) -> float:
    text = node.value
    _check_number(node, _INT.match(text) or _FLOAT.match(text), "a number")
    return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


def _check_number(node: Any, match: re.Match[str] | None, kind: str) -> None:
    text = node.value
    if len(text) > MAX_NUMBER:
        size = f"{short(text, 24)} is a number of {len(text):,} characters"
        raise _number_error(node, f"{size}. Put it in quotes if it is text")
    if not match:  # such as `!!int x`
        raise _number_error(node, f"{text!r} is not {kind}")


def _number_error(node: Any, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_YAML_1_1: Any = yaml.SafeLoader("")
_KEPT_TAGS = ("null", "bool", "str", "seq", "map")
_safe = yaml.SafeLoader.yaml_constructors


class _StrictLoader(_Loader):  # type: ignore[misc]
    """SafeLoader with fewer types: text, numbers, booleans, null, lists, mappings."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        f"{_TAG}{kind}": _safe[f"{_TAG}{kind}"] for kind in _KEPT_TAGS
    } | {
        f"{_TAG}int": _read_int,
        f"{_TAG}float": _read_float,
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
    """SafeDumper that puts text in quotes if `load` would read it as a number."""

    yaml_implicit_resolvers = {
        first: list(found) for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _class in (_StrictLoader, _Dumper):
    for _first in "-+.0123456789":
        _found = _class.yaml_implicit_resolvers.setdefault(_first, [])
        _found += [(f"{_TAG}int", _INT), (f"{_TAG}float", _FLOAT)]
