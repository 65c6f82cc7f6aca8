"""YAML by the safe loader, with limits: no duplicate keys, no deep nesting, and no aliases that unfold without end."""

import re
from typing import Any

import yaml

MAX_DEPTH = 32
MAX_NODES = 100_000  # with every alias unfolded: ten lines of aliases can mean a billion entries


def load(text: str) -> Any:
    """Parse one document.

    Raises:
        yaml.YAMLError: it is not valid, or beyond the limits.
    """
    _check_limits(text)
    try:
        return yaml.load(text, Loader=StrictLoader)
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise yaml.YAMLError(f"a value means nothing: {error}") from None  # a date without such a day, say


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
                raise yaml.MarkedYAMLError(None, None, "an alias stands inside of what it means", where)
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
            raise yaml.MarkedYAMLError(None, None, f"nested more than {MAX_DEPTH} deep", event.start_mark)
        if count > MAX_NODES:
            words = f"more than {MAX_NODES:,} entries, aliases unfolded"
            raise yaml.MarkedYAMLError(None, None, words, event.start_mark)


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class StrictLoader(_Loader):  # type: ignore[misc]
    """SafeLoader that refuses duplicate keys, and reads 3e-3 as the number it means (YAML 1.1 says text)."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Build a mapping; its keys are words, and each stands once."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *anchor` is taken apart by the class above; own keys win over merged ones
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice in one mapping: keep one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


StrictLoader.yaml_implicit_resolvers = {k: list(v) for k, v in StrictLoader.yaml_implicit_resolvers.items()}
_NUMBER = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
for _first in "-+0123456789":
    StrictLoader.yaml_implicit_resolvers.setdefault(_first, []).append(("tag:yaml.org,2002:float", _NUMBER))
