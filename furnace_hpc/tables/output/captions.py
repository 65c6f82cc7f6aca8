"""What stands under a table: what its numbers are, and no more than its intervals show."""

from collections.abc import Collection

from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.tables.output.cells import excludes_zero, is_starred, scale_of
from furnace_hpc.tables.statistics.significance import in_words, seeds_in_words
from furnace_hpc.tables.table import Ablation

COSTS = {
    "train_s": "train: seconds in training steps, mean over runs",
    "wall_s": "wall: seconds from the first attempt's start to the result, mean over runs",
    "samples_per_s": "samples/s: mean over runs",
    "samples_per_s_each": "samples/s of one process: mean over runs",
    "attempts": "attempts: sum over runs, missing ones too",
    "lost_steps": "lost steps: trained and lost before they were saved, sum over runs",
    "hours": "hours: processes (GPUs) times hours of all attempts that have ended, missing runs' too",
    "goodput": "goodput: seconds in steps that count, over seconds of all attempts, mean over finished runs",
    "peak_memory_gib": "peak: memory of the largest process",
}


def caption(ablation: Ablation, columns: Collection[str]) -> list[str]:
    """What the numbers under `columns` are, in sentences that claim nothing more than the intervals show."""
    grid, scale = ablation.grid, scale_of(ablation.grid.metric)
    split = grid.metric.partition("/")[0]
    better = "higher" if grid.direction == "max" else "lower"
    rules = dict.fromkeys(_rule(run.spec.config) for run in ablation.runs)
    spread, pairs = _draws(ablation)
    lines = [
        f"{grid.metric}{scale.unit} on the whole {split} split, {better} is better: {spread}.",
        f"Measured at {'; or '.join(rules)}.",
        f"Difference to {grid.reference}: {pairs}, with 95 % paired t interval.",
        _shown(ablation),
        *in_words(
            ablation,
            starred=any(is_starred(row.difference, scale) for row in ablation.rows),
            columns=columns,
        ),
        "Bold: best mean as shown, which alone is no evidence of a difference.",
    ]
    if any(len(row.runs) > row.n_expected for row in ablation.rows):
        lines.insert(
            1,
            "A seed's value is the mean over the row's runs with it; a seed that lacks one is left out.",
        )
    if costs := "; ".join(COSTS[name] for name in columns if name in COSTS):
        lines.append(f"{costs[0].upper()}{costs[1:]}.")
    if split == "val" and any(_is_chosen(run.spec.config) for run in ablation.runs):
        lines.insert(2, "The step was chosen on this same split: the values are optimistic.")
    return lines


def _draws(ablation: Ablation) -> tuple[str, str]:
    """What the mean and its deviation are taken over, and what the difference is."""
    seeds, packs = ", ".join(map(str, ablation.grid.seeds)), ablation.packs
    if not packs:
        return (
            f"mean ± sample standard deviation over n runs (seeds {seeds})",
            "mean over seeds that both rows have",
        )
    return (
        f"mean over {len(packs)} packs of the data, each drawn with a data seed of its own ({', '.join(packs)}), of "
        f"the mean over {seeds_in_words(ablation)} of the training ({seeds}); n runs. ± (seeds): sample standard "
        f"deviation within a pack, pooled; ± (packs): that of the packs' means"
    ), (
        "runs of one pack and one seed are paired, and averaged over the seeds of a pack; mean over packs, which are "
        "what the interval and the tests count, since runs on one pack share its samples"
    )


def _shown(ablation: Ablation) -> str:
    """Which intervals exclude zero: the only difference that a table can point at."""
    compared = [row for row in ablation.rows if row.difference and row.difference.interval]
    scale = scale_of(ablation.grid.metric)
    shown = [
        row.variant for row in compared if row.difference and excludes_zero(row.difference, scale)
    ]
    if not compared:
        return "No row has an interval: the table shows no difference."
    if not shown:
        return "No interval excludes zero: the table shows no difference."
    return (
        f"The interval excludes zero for {', '.join(shown)} "
        f"({len(compared)} interval{'s' if len(compared) > 1 else ''}, not corrected for their number)."
    )


def _rule(config: TrainConfig) -> str:
    if not _is_chosen(config):
        return f"the last step ({config.steps})"
    every = f"looked at every {config.evaluation.every} of {config.steps} steps"
    return f"the step with the best {config.selection_metric}, {every}"


def _is_chosen(config: TrainConfig) -> bool:
    """Whether the validation split had a say: the last step is always looked at, and may be the only one."""
    return config.evaluation.select == "best" and config.evaluation.every < config.steps
