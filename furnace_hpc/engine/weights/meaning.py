"""Whether weights of another run mean the same here: token ids, classes and numbers in one order.

Shapes alone do not tell: two vocabularies of one size give the same shape.
"""

import re
from collections.abc import Iterable, Sequence

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest, number_names
from furnace_hpc.data.decode.tokenizer import vocabulary_of

_WORDS = re.compile(r"(word|tok|token)_embeddings?\.weight$")


def check_meaning(names: Iterable[str], theirs: Manifest, ours: Manifest, source: str) -> None:
    """Compare what rows of the copied tensors stand for. What a manifest lacks is not compared.

    Args:
        names: the parameters that are copied.
        theirs: of the pack that the source was trained on.
        ours: of the pack of this run.
        source: in words.

    Raises:
        ConfigError: they stand for other tokens, classes or numbers.
    """
    names = sorted(names)
    words = [name for name in names if _WORDS.search(name)]
    there, here = vocabulary_of(theirs), vocabulary_of(ours)
    if words and there and here and there != here:
        raise ConfigError(
            f"init_from {source}: {words[0]} has a row per token, and the token ids there are of "
            f"vocabulary {there}, here of {here}. Pack the data with the tokenizer of the source, "
            f"or choose other parts with init_from.parts"
        )
    for task, labels in ours.labels.items():
        known = theirs.labels.get(task)
        heads = [
            name for name in names if re.search(rf"(heads|unimodal)\.{re.escape(task)}\.", name)
        ]
        if heads and known:
            _check_order(
                heads[0], f"classes of task {task!r}", known.classes, labels.classes, source
            )
    columns = [name for name in names if name.startswith("encoders.numbers.")]
    if columns and number_names(theirs) and number_names(ours):
        both = number_names(theirs), number_names(ours)
        _check_order(columns[0], "columns of numbers", *both, source)


def _check_order(
    name: str, what: str, theirs: Sequence[str], ours: Sequence[str], source: str
) -> None:
    """Raise ConfigError unless two lists are equal. Other lengths have other shapes."""
    pairs = enumerate(zip(theirs, ours, strict=False))
    first = next(((place, pair) for place, pair in pairs if pair[0] != pair[1]), None)
    if first is None:
        return
    place, (there, here) = first
    raise ConfigError(
        f"init_from {source}: {name} is copied, and the {what} differ: number {place} is "
        f"{there!r} there and {here!r} here. Pack both sets with the same {what} in one order, or "
        f"choose other parts with init_from.parts"
    )
