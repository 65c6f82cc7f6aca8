"""GPUs in Slurm's words: gres of a node (`gpu:a100:4(S:0-1),mps:400`), tres of a job (`gres/gpu:a100=4,gres/gpu=4`)."""

import re

_ITEM = re.compile(r"(?:\([^()]*\)|[^,()])+")  # (S:0,2) holds a comma that separates nothing
_COUNT = re.compile(r"([0-9]{1,12})([KMGTP]?)", re.IGNORECASE)
_FLAGS = ("", "no_consume", "(null)")  # (null): a GPU without type


def gpus(text: str) -> dict[str, int]:
    """Type -> number of GPUs, types in Slurm's order; the type is empty where there is none. Other gres are left out.

    In tres, `gres/gpu=4` is the sum of all types; in gres, `gpu:2` are two more.
    """
    found: dict[str, int] = {}
    whole = 0
    for item in _ITEM.findall(text):
        name, equals, value = re.sub(r"\((?!null\))[^()]*\)", "", item).strip().partition("=")
        kind, *rest = name.removeprefix("gres/").removeprefix("gres:").split(":")
        if kind != "gpu":
            continue
        rest = [word for word in rest if word not in _FLAGS]
        if not equals:  # gpu:a100: one
            value = rest.pop() if rest and _COUNT.fullmatch(rest[-1]) else "1"
        if (count := _number(value)) and equals and not rest:
            whole += count
        elif count:
            found[":".join(rest)] = found.get(":".join(rest), 0) + count
    without_type = whole - sum(found.values())
    return found | ({"": found.get("", 0) + without_type} if without_type > 0 else {})


def _number(text: str) -> int:
    """A count, 1K is 1024; 0 for other text."""
    found = _COUNT.fullmatch(text)
    return int(found[1]) * 1024 ** " KMGTP".index(found[2].upper() or " ") if found else 0
