"""The 5 % level, and p values as text."""

from furnace_hpc.tables.statistics import estimates

ALPHA = 1 - estimates.LEVEL
MAX_DIGITS = 15  # of a p value


def format_p(p: float | None) -> str:
    """Format a p value as papers do: `.031`, `< .001`. Empty if there is none.

    A p below ALPHA is shown below it: `.0497`, not `.050`.
    """
    if p is None:
        return ""
    if p < 0.001:
        return "< .001"
    digits, level = 3, round(ALPHA, MAX_DIGITS)
    while p < level <= round(p, digits) and digits < MAX_DIGITS:
        digits += 1
    return f"{p:.{digits}f}".removeprefix("0")


def format_exact_p(p: float | None) -> str:
    """Format the p of an exact test, a multiple of its smallest value: `.0625`.

    Empty if there is none.
    """
    if p is None:
        return ""
    if p < 0.0001:
        return f"{p:.1e}"
    return f"{p:.4g}".removeprefix("0")
