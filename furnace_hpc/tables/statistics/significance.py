"""The 5 % level, and p values as text."""

from furnace_hpc.tables.statistics import estimates

ALPHA = 1 - estimates.LEVEL


def format_p(p: float | None) -> str:
    """Format a p value as papers do: `.031`, `< .001`. Empty if there is none."""
    if p is None:
        return ""
    if p < 0.001:
        return "< .001"
    return f"{p:.3f}".removeprefix("0")


def format_exact_p(p: float | None) -> str:
    """Format the p of an exact test, a multiple of its smallest value: `.0625`.

    Empty if there is none.
    """
    if p is None:
        return ""
    if p < 0.0001:
        return f"{p:.1e}"
    return f"{p:.4g}".removeprefix("0")
