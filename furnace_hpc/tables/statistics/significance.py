"""What the tests of a table say, in words: p-values, marks of significance, seeds that are lacking."""

from collections.abc import Collection

from furnace_hpc.tables.statistics import estimates
from furnace_hpc.tables.statistics.estimates import Difference
from furnace_hpc.tables.table import Ablation, Row

ALPHA = 1 - estimates.LEVEL
UNDERTRAINED = "reference under-trained"


def p_in_words(p: float | None) -> str:
    """A p-value as papers print it: `.031`, `< .001`; empty when there is none."""
    if p is None:
        return ""
    if p < 0.001:
        return "< .001"
    return f"{p:.3f}".removeprefix("0")


def is_significant(difference: Difference | None) -> bool:
    """Whether the paired t test is below 5 % after Holm's correction."""
    return difference is not None and difference.holm_p is not None and difference.holm_p < ALPHA


def in_words(ablation: Ablation, starred: bool, columns: Collection[str]) -> list[str]:
    """Sentences for the caption: what `*` means (or that there is none), and what the tests can show at all."""
    tested = [row for row in ablation.rows if row.difference and row.difference.holm_p is not None]
    if not tested:
        return []
    rows = f"{len(tested)} row{'s' if len(tested) > 1 else ''}"
    lines = [
        f"*: p < .05 in the paired t test, two-sided, with Holm's correction for {rows}, and an interval without zero"
        f"{'' if starred else ': no row has it'}."
    ]
    numbers = sorted(
        {
            row.difference.n
            for row in tested
            if row.difference and row.difference.sign_flip_p is not None
        }
    )
    if numbers and "sign_flip_p" in columns:
        pairs = "packs" if ablation.packs else "pairs"
        floors = ", ".join(
            f"{exact_p(estimates.sign_flip_floor(n))} with {n} {pairs}" for n in numbers
        )
        lines.append(
            f"Flip: exact paired sign-flip permutation test, not corrected; its p cannot be below {floors}."
        )
    if "effect" in columns:
        lines.append("Effect: Cohen's d of the paired differences (mean over deviation).")
    if ablation.stronger_sanity:
        lines.append(
            f"{UNDERTRAINED.capitalize()}: {_lost_to(ablation)}; more training may give the same differences."
        )
    return lines


def short_caption(ablation: Ablation) -> str:
    """Metric, n and test in one line, for a caption that may be all that is read."""
    numbers = sorted({row.n for row in ablation.rows})
    n = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
    n += (
        f" runs, {seeds_in_words(ablation)} on each of {len(ablation.packs)} packs"
        if ablation.packs
        else " seeds"
    )
    spreads = " over seeds and over packs" if ablation.packs else ""
    return (
        f"{ablation.grid.metric}: mean ± sample standard deviation{spreads}, n = {n}; difference to "
        f"{ablation.grid.reference} with paired t interval (95 %); *: p < .05, paired t test, Holm's correction."
    )


def seeds_in_words(ablation: Ablation) -> str:
    """`1 seed`, `5 seeds`."""
    number = len(ablation.grid.seeds)
    return f"{number} seed{'s' if number > 1 else ''}"


def too_few_seeds(row: Row, reference: str) -> str:
    """How many more seeds would show a difference as large as the one seen; empty where it is shown already.

    Of a grid with several packs of the data it is packs that are too few.
    """
    difference, unit = row.difference, "pack" if row.has_packs else "seed"
    if difference is None or not difference.too_few or difference.is_constant:
        return ""
    if difference.interval is None:
        return f"too few {unit}s to tell it from {reference}: one pair has no interval"
    if not difference.effect:
        return ""  # no difference was seen at all: no number of seeds would show one
    wanted = f"(paired t test at 5 %, power {estimates.POWER:.0%})".replace("%)", " %)")
    if difference.more_seeds is None:
        return f"too few {unit}s to tell it from {reference}, and {estimates.MAX_SEEDS:,} would be too {wanted}"
    many = f"{difference.more_seeds} more {unit}{'s' if difference.more_seeds > 1 else ''}"
    return f"too few {unit}s to tell it from {reference}: {many} would show a difference as large as this {wanted}"


def _lost_to(ablation: Ablation) -> str:
    return f"{ablation.grid.reference} loses to {', '.join(ablation.stronger_sanity)}, a sanity row of the grid"


def exact_p(p: float | None) -> str:
    """The p of an exact test, a multiple of its floor, as it is: `.0625`; empty when there is none."""
    if p is None:
        return ""
    return f"{p:.4g}".removeprefix("0") if p >= 0.0001 else f"{p:.1e}"
