"""Leave out samples that lack a required modality (`--require`).

All rows of a grid must have the same samples. If a row of the grid uses only one modality, leave
out the samples without this modality for all rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.data.packing.rejects import Refusal
from furnace_hpc.data.packing.sample import PackPlan, Sample


def require_modalities(plan: PackPlan, names: tuple[str, ...]) -> PackPlan:
    """Return the plan without samples that lack one of these modalities.

    Raises:
        ConfigError: the set has no such modality.
    """
    if not names:
        return plan
    if unknown := [name for name in names if name not in plan.modalities]:
        raise ConfigError(f"--require got {unknown[0]!r}; {nearest(unknown[0], plan.modalities)}")
    bits = tuple(plan.modalities.index(name) for name in plan.modalities if name in names)
    render = _Required(plan.render, plan.modalities, bits).render
    settings = plan.settings | {"require": [plan.modalities[bit] for bit in bits]}
    return replace(plan, render=render, settings=settings)


@dataclass(frozen=True)
class _Required:
    inner: Callable[[str, Any], Sample]
    modalities: tuple[str, ...]
    bits: tuple[int, ...]

    def render(self, split: str, row: Any) -> Sample:
        """Render a sample. Refuse it if it lacks a required modality."""
        sample = self.inner(split, row)
        if sample.values is None or all(sample.values["present"][bit] for bit in self.bits):
            return sample
        refusals = [replace(refusal, kept=False) for refusal in sample.refusals]
        refused = {refusal.modality for refusal in refusals}
        name = sample.values["source_id"].item().decode()
        for bit in self.bits:
            modality = self.modalities[bit]
            if not sample.values["present"][bit] and modality not in refused:
                refusals.append(
                    Refusal(split, name, modality, "", "missing", "--require", kept=False)
                )
        return Sample(None, tuple(refusals))
