"""The lines of tuning.csv and tuning_curve.csv. Numbers have full precision."""

from typing import Any

from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.text import format_value


def tuning_lines(ablation: Ablation) -> list[dict[str, Any]]:
    """Column -> value of each trial, for tuning.csv. Numbers have full precision."""
    if ablation.tuning is None:
        return []
    found = []
    for row in ablation.tuning.rows.values():
        for choice in row.choices:
            for tried in choice.trials:
                found.append(
                    {
                        "variant": row.name,
                        "pack": choice.pack,
                        "trial": tried.trial,
                        **{key: format_value(value) for key, value in tried.values.items()},
                        "metric": choice.metric,
                        **{
                            f"seed_{seed}": value
                            for seed, value in zip(choice.seeds, tried.results, strict=True)
                        },
                        "mean": tried.mean,
                        "chosen": tried.trial == choice.trial,
                        "failures": "; ".join(tried.failures),
                    }
                )
    return found


def curve_lines(ablation: Ablation) -> list[dict[str, Any]]:
    """Column -> value of each point of the curves, for tuning_curve.csv."""
    if ablation.tuning is None:
        return []
    return [
        {
            "variant": row.name,
            "metric": ablation.tuning.metric.name,
            "trials": k,
            "expected_best": value,
        }
        for row in ablation.tuning.rows.values()
        for k, value in enumerate(row.curve(), 1)
    ]
