"""A study whose rows are combinations of factors, for the tests of effects."""

import random

from tables_study import finish, study

from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.statistics.factorial import Factor
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.view import View, apply_view, why_no_verdict

TWO_BY_TWO = [Factor(("alpha",), (("0",), ("1",))), Factor(("beta",), (("0",), ("1",)))]
AXES = {
    "variants": {},
    "axes": {"loss.alpha": [0, 0.5], "loss.beta": [0, 0.3]},
    "reference": "alpha-0_beta-0",
}


def table(path, value_of, without=(), view=None, **changes) -> Ablation:
    """A study whose values are those of `value_of(spec)`."""
    grid, runs = study(**changes)
    folder = GridFolder(path / "study")
    for spec in runs:
        if (spec.variant, spec.config.seed) not in without:
            finish(spec, folder, accuracy=value_of(spec))
    shown, kept = apply_view(grid, runs, view or View())
    why = why_no_verdict(grid, runs, view or View())
    return collect(shown, kept, folder, by=(view or View()).by, why_no_verdict=why)


def noisy(spec) -> float:
    """Alpha gains 3 points, beta 1."""
    loss = spec.config.loss
    noise = random.Random(f"{loss.alpha} {loss.beta} {spec.config.seed}").gauss(0, 0.003)
    return 0.7 + 0.03 * bool(loss.alpha) + 0.01 * bool(loss.beta) + noise
