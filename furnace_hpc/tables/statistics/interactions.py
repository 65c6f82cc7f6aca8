"""The omnibus test of an interaction of two factors: do any of its contrasts differ from zero?

It is the F test of a repeated-measures analysis of variance, where the units (seeds, or packs) are
the subjects. Rows may have different spreads, so the degrees of freedom are corrected (Greenhouse
and Geisser 1959). With two levels each it would be the paired t test of the only contrast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from furnace_hpc.tables.statistics.estimates import SAME
from furnace_hpc.tables.statistics.resampling import error_factor

# level of each factor -> value of each unit, in one order; level 0 is that of the reference
CellValues = Mapping[tuple[int, ...], Sequence[float]]


@dataclass(frozen=True)
class Omnibus:
    """The test of all contrasts of one interaction. Without a test, f and p are None."""

    name: str
    num_contrasts: int
    n: int  # units
    f: float | None = None
    degrees: tuple[float, float] = (0.0, 0.0)  # corrected
    p: float | None = None
    holm_p: float | None = None  # corrected for the number of comparisons in the table


def omnibus_test(
    name: str,
    means: Sequence[Sequence[Sequence[float]]],
    resolution: float = 0.0,
    test_per_train: float = 0.0,
) -> Omnibus:
    """Test an interaction. There is no test for one unit, or if all units have the same contrasts.

    Args:
        name: of the interaction.
        means: value of each unit, for each level of the one factor and each level of the other.
        resolution: smallest possible change of a value. The deviation of a contrast with unit
            length is at least that, as in the t interval of a contrast.
        test_per_train: n_test / n_train if packs share samples, else 0.
    """
    import numpy as np
    from scipy.special import fdtrc

    values_ABN = np.asarray(means, dtype=np.float64)
    levels_a, levels_b, n = values_ABN.shape
    num_contrasts = (levels_a - 1) * (levels_b - 1)
    if n < 2:
        return Omnibus(name, num_contrasts, n)
    # what remains of each unit without the effects of the two factors
    rest_ABN = (
        values_ABN
        - values_ABN.mean(0, keepdims=True)
        - values_ABN.mean(1, keepdims=True)
        + values_ABN.mean((0, 1), keepdims=True)
    )
    center_AB = rest_ABN.mean(2)
    noise_CN = (rest_ABN - center_AB[..., None]).reshape(-1, n)
    covariance_CC = noise_CN @ noise_CN.T / (n - 1)
    variance = float(np.trace(covariance_CC)) / num_contrasts
    if not resolution and variance <= (SAME * float(np.abs(values_ABN).max())) ** 2:
        return Omnibus(name, num_contrasts, n)
    share = 1.0
    if variance > resolution**2:
        share = float(np.trace(covariance_CC) ** 2 / (covariance_CC**2).sum()) / num_contrasts
    error = max(variance, resolution**2) * error_factor(n, test_per_train) ** 2
    f = n * float((center_AB**2).sum()) / num_contrasts / error
    degrees = share * num_contrasts, share * num_contrasts * (n - 1)
    return Omnibus(name, num_contrasts, n, f, degrees, float(fdtrc(*degrees, f)))
