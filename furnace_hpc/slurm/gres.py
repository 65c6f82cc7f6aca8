"""Count GPUs in Slurm's resource texts.

A node's GRES is `gpu:a100:4(S:0-1),mps:400`. A job's TRES is `gres/gpu:a100=4,gres/gpu=4`.
"""

import re

_ITEM = re.compile(r"(?:\([^()]*\)|[^,()])+")  # commas inside (S:0,2) are no separators
_COUNT = re.compile(r"([0-9]{1,12})([KMGTP]?)", re.IGNORECASE)
_FLAGS = ("", "no_consume", "(null)")  # (null): a GPU without type


def gpus(text: str) -> dict[str, int]:
    """Count GPUs by type, in Slurm's order. Other resources are left out.

    A GPU without a type counts under the empty type. In TRES, `gres/gpu=4` is the sum of all types.
    In GRES, `gpu:2` is two GPUs besides those of other types.
    """
    found: dict[str, int] = {}
    sum_of_types = 0
    for item in _ITEM.findall(text):
        name, equals, value = re.sub(r"\((?!null\))[^()]*\)", "", item).strip().partition("=")
        kind, *words = name.removeprefix("gres/").removeprefix("gres:").split(":")
        if kind != "gpu":
            continue
        gpu_type = [word for word in words if word not in _FLAGS]
        if not equals:
            value = "1"  # `gpu:a100` is one
            if gpu_type and _COUNT.fullmatch(gpu_type[-1]):
                value = gpu_type.pop()
        count = _number(value)
        if equals and not gpu_type:
            sum_of_types += count
        elif count:
            found[":".join(gpu_type)] = found.get(":".join(gpu_type), 0) + count
    without_type = sum_of_types - sum(found.values())
    if without_type > 0:
        found[""] = found.get("", 0) + without_type
    return found


def _number(text: str) -> int:
    """Read a count, where 1K is 1024. Other text is 0."""
    found = _COUNT.fullmatch(text)
    if not found:
        return 0
    power = " KMGTP".index(found[2].upper() or " ")
    return int(found[1]) << 10 * power
