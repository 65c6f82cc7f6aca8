"""The caption of a table. It explains the numbers, and claims no more than the intervals show."""

from collections.abc import Collection, Iterator

from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.tables.output.cells import UNDERTRAINED, excludes_zero, is_starred
from furnace_hpc.tables.statistics import estimates
from furnace_hpc.tables.statistics.significance import format_exact_p
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.text import count

# column -> its explanation
COSTS = {
    "train_s": "train: seconds in training steps, mean over runs",
    "wall_s": "wall: seconds from the start of the first attempt to the result, mean over runs",
    "samples_per_s_each": "samples/s: of one GPU or process, mean over runs",
    "peak_memory_gib": "peak: memory of the largest process",
    "attempts": "attempts: sum over runs, missing runs included",
    "lost_steps": "lost steps: trained again because they were not saved, sum over runs",
    "hours": "hours: GPUs or processes times hours of all ended attempts, missing runs included",
    "goodput": (
        "goodput: seconds in steps that count, divided by seconds of all attempts, "
        "mean over finished runs"
    ),
}


def caption(ablation: Ablation, columns: Collection[str]) -> list[str]:
    """The sentences that explain the numbers under `columns`."""
    return [
        _values(ablation),
        *_several_runs_per_seed(ablation),
        *_selected_steps(ablation),
        _pairs(ablation),
        *_shared_samples(ablation),
        _intervals(ablation),
        *_tests(ablation, columns),
        "Bold: best mean as displayed. Bold alone is no evidence of a difference.",
        *_costs(columns),
    ]


def short_caption(ablation: Ablation) -> str:
    """Metric, n and test in one line, for readers who read nothing else."""
    numbers = sorted({row.n for row in ablation.rows})
    n = str(numbers[0])
    if len(numbers) > 1:
        n += f" to {numbers[-1]}"
    spread, test = "mean ± sample standard deviation", "paired t test"
    if ablation.packs:
        seeds = count(len(ablation.grid.seeds), "seed")
        n += f" runs, {seeds} on each of {len(ablation.packs)} packs"
        spread += " over seeds and over packs"
        if any(row.test_per_train for row in ablation.rows):
            test += " corrected for shared samples (Nadeau and Bengio)"
    else:
        n += " seeds"
    return (
        f"{ablation.metric.name}: {spread}, n = {n}; difference to {ablation.grid.reference} with "
        f"paired t interval (95 %); *: p < .05, {test}, Holm's correction."
    )


def _values(ablation: Ablation) -> str:
    """Metric, and what its mean and deviation are taken over."""
    metric, seeds = ablation.metric, ", ".join(map(str, ablation.grid.seeds))
    text = (
        f"{metric.name}{metric.scale.unit} on the whole {metric.split} split, "
        f"{metric.better} is better: "
    )
    if not ablation.packs:
        return f"{text}mean ± sample standard deviation over n runs (seeds {seeds})."
    packs = ", ".join(ablation.packs)
    return (
        f"{text}mean over {len(ablation.packs)} packs of the data, each with its own data seed "
        f"({packs}). The value of a pack is the mean over "
        f"{count(len(ablation.grid.seeds), 'seed')} of the training ({seeds}). n counts runs. "
        f"± (seeds): sample standard deviation within a pack, pooled. "
        f"± (packs): sample standard deviation of the packs' means."
    )


def _several_runs_per_seed(ablation: Ablation) -> Iterator[str]:
    if any(len(row.runs) > row.n_expected for row in ablation.rows):
        yield (
            "The value of a seed is the mean over the row's runs with it. "
            "A seed counts only if none of these runs is missing."
        )


def _selected_steps(ablation: Ablation) -> Iterator[str]:
    """The step at which the metric was measured."""
    rules = dict.fromkeys(_step_rule(run.spec.config) for run in ablation.runs)
    yield f"Measured at {', or at '.join(rules)}."
    is_selected = any(_is_selected(run.spec.config) for run in ablation.runs)
    if ablation.metric.split == "val" and is_selected:
        yield "The same split selected the step, so the values are optimistic."


def _step_rule(config: TrainConfig) -> str:
    if not _is_selected(config):
        return f"the last step ({config.steps})"
    every = f"evaluated every {config.evaluation.every} of {config.steps} steps"
    return f"the step with the best {config.selection_metric}, {every}"


def _is_selected(config: TrainConfig) -> bool:
    """Whether validation selected the step. It has no choice if only the last step is evaluated."""
    return config.evaluation.select == "best" and config.evaluation.every < config.steps


def _pairs(ablation: Ablation) -> str:
    """How the difference is computed."""
    reference = ablation.grid.reference
    if not ablation.packs:
        return (
            f"Difference to {reference}: mean over the seeds that both rows have, "
            f"with a 95 % paired t interval."
        )
    return (
        f"Difference to {reference}: runs on one pack with one seed form a pair. Pairs are "
        f"averaged over the seeds of a pack, then over packs, with a 95 % paired t interval. "
        f"Interval and tests count packs, because runs on one pack share its samples."
    )


def _shared_samples(ablation: Ablation) -> Iterator[str]:
    """The correction for packs that share samples."""
    if ratio := max((row.test_per_train for row in ablation.rows), default=0.0):
        yield (
            f"The packs are drawn from the same samples, so intervals and t test are the corrected "
            f"resampled ones of Nadeau and Bengio (2003): the variance of a mean over K packs is "
            f"taken as 1/K + {ratio:.2f} times that of a pack."
        )


def _intervals(ablation: Ablation) -> str:
    """The rows whose intervals exclude zero: the only differences that a table shows."""
    intervals = {
        row.variant: row.difference
        for row in ablation.rows
        if row.difference and row.difference.interval
    }
    scale = ablation.metric.scale
    shown = [variant for variant, found in intervals.items() if excludes_zero(found, scale)]
    if not intervals:
        return "No row has an interval: the table shows no difference."
    if not shown:
        return "No interval excludes zero: the table shows no difference."
    return (
        f"The interval excludes zero for {', '.join(shown)} "
        f"({count(len(intervals), 'interval')}, not corrected for their number)."
    )


def _tests(ablation: Ablation, columns: Collection[str]) -> Iterator[str]:
    """The tests, and the smallest p values that they can give."""
    tested = [
        row.difference
        for row in ablation.rows
        if row.difference and row.difference.holm_p is not None
    ]
    if not tested:
        return
    scale = ablation.metric.scale
    star = (
        f"*: p < .05 in the paired t test (two-sided, Holm's correction for "
        f"{count(len(tested), 'row')}), and an interval that excludes zero."
    )
    if not any(is_starred(difference, scale) for difference in tested):
        star += " No row has a star."
    yield star
    numbers = sorted({found.n for found in tested if found.sign_flip_p is not None})
    if numbers and "sign_flip_p" in columns:
        unit = "packs" if ablation.packs else "pairs"
        floors = [
            f"{format_exact_p(estimates.sign_flip_floor(n))} with {n} {unit}" for n in numbers
        ]
        yield (
            f"p (flip): exact paired sign-flip permutation test, not corrected. "
            f"Its smallest possible p is {', '.join(floors)}."
        )
    if "effect" in columns:
        yield ("Effect: Cohen's d of the paired differences (mean divided by standard deviation).")
    if ablation.stronger_sanity:
        better = ", ".join(ablation.stronger_sanity)
        yield (
            f"{UNDERTRAINED.capitalize()}: these sanity rows have a better mean than "
            f"{ablation.grid.reference}: {better}. Longer training may give the same differences."
        )


def _costs(columns: Collection[str]) -> Iterator[str]:
    if costs := "; ".join(COSTS[name] for name in columns if name in COSTS):
        yield f"{costs[0].upper()}{costs[1:]}."
