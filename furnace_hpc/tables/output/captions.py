"""The caption of a table. It explains the numbers, and claims no more than the intervals show."""

from collections import Counter
from collections.abc import Collection, Iterator

from furnace_hpc.config.train_config import UNKNOWN_STEPS, TrainConfig
from furnace_hpc.tables.large.once import once_per_table
from furnace_hpc.tables.output.cells import MARKS
from furnace_hpc.tables.output.verdict import equivalent_sentence, undertrained
from furnace_hpc.tables.statistics.estimates import MAX_SIGN_FLIP, sign_flip_floor
from furnace_hpc.tables.statistics.robust import LEAST_RUNS
from furnace_hpc.tables.statistics.significance import format_exact_p
from furnace_hpc.tables.statistics.verdicts import Verdict
from furnace_hpc.tables.table import Ablation, Source
from furnace_hpc.tables.text import count
from furnace_hpc.tables.tuning.words import budget

NOT_TUNED = "Not tuned per row."
# column -> its explanation
COSTS = {
    "train_s": "train: seconds in training steps, median over runs",
    "wall_s": "wall: seconds from the start of the first attempt to the result, median over runs",
    "samples_per_s_each": "samples/s: of one GPU or process, median over runs",
    "peak_memory_gib": "peak: memory of the largest process",
    "model_tflop_s": "TFLOP/s: of the model, per GPU or process, without recomputation, median",
    "mfu": "MFU: model FLOPs divided by the GPU's dense peak, median over runs",
    "data_wait": "data wait: share of train in which the slowest process waited for data, median",
    "energy_kj": "energy: of all GPUs in training steps (NVML), sum over finished runs",
    "attempts": "attempts: sum over runs, missing runs included",
    "lost_steps": "lost steps: trained again because they were not saved, sum over runs",
    "hours": "hours: GPUs or processes times hours of all ended attempts, missing runs included",
    "tuned": "tuned: values of the best trial",
    "tuning_hours": "tuning: GPUs or processes times hours of all trials, failed ones included",
    "goodput": (
        "goodput: seconds in steps that count, divided by seconds of all attempts, "
        "median over finished runs"
    ),
}
OPTIONAL_COLUMNS = {
    "hedges_g": (
        "Hedges' g: mean of the paired differences divided by their standard deviation, with the "
        "correction for small samples (Hedges 1981), and a 95 % interval from the noncentral t "
        "distribution, not corrected."
    ),
    "improvement": (
        "P(improvement): share of pairs in which the row is better, ties half, with the exact "
        "95 % interval of Clopper and Pearson, which is conservative, not corrected."
    ),
    "correlation": "Correlation: Pearson's, of the row's and the reference's values over pairs.",
    "iqm": (
        f"IQM: interquartile mean of at least {LEAST_RUNS} runs (Agarwal et al. 2021), with the "
        f"95 % t interval of a trimmed mean (Tukey and McLaughlin 1963), not corrected. With "
        f"several packs it counts runs inside each pack, and packs with fewer than {LEAST_RUNS} "
        f"runs give no interval."
    ),
}
PACKS_ARE = {
    "": "Neither --pack nor --data-set is given: the table says nothing about other data.",
    "one pack": "All runs have one pack (--pack): the table says nothing about other data.",
    "one data set": "All runs have one data set (--data-set): the table says nothing about others.",
    "draws": (
        "Packs are draws of one data set (--pack). The files do not say whether packs share "
        "samples: the intervals assume that they do not."
    ),
    "data sets": "Intervals and tests count data sets (--data-set). They need values on one scale.",
    "ranked data sets": (
        "Intervals and tests count data sets (--data-set). They need values on one scale, and "
        "ranks do not."
    ),
}
NOT_CHECKED = (
    "Furnace did not train these runs: it cannot check their code, data and choice of step, nor "
    "whether rows, runs or metrics were left out after a look at the results."
)


def caption(ablation: Ablation, columns: Collection[str]) -> list[str]:
    """The sentences that explain the numbers under `columns`."""
    return [
        _values(ablation),
        *further_metrics(ablation),
        *_several_runs_per_seed(ablation),
        *_selected_steps(ablation),
        *_tuning(ablation),
        *_pairs(ablation),
        *_shared_samples(ablation),
        *_leaks(ablation),
        *_verdicts(ablation),
        *_tests(ablation, columns),
        *_optional(ablation, columns),
        "Bold: best mean as displayed, of rows on the same data without missing or failed runs. "
        "Bold alone does not show a difference.",
        *_costs(columns),
    ]


@once_per_table
def main_sentences(ablation: Ablation) -> list[str]:
    """What every reader of the numbers must know. `caption` explains the rest."""
    found = [short_caption(ablation)]
    if ablation.why_no_verdict:
        found.append(ablation.why_no_verdict)
    else:
        found += _without_marks(ablation)
    found += further_metrics(ablation)
    found += _optimistic(ablation)
    found += _leaks(ablation)
    if ablation.source is not None:
        found.append(NOT_CHECKED)
        found.append(PACKS_ARE[ablation.source.packs_are])
    found += undertrained(ablation)
    return found


def further_metrics(ablation: Ablation) -> Iterator[str]:
    """What the columns of further metrics are."""
    if not ablation.others:
        return
    names = ", ".join(table.metric.name for table in ablation.others)
    them = "it" if len(ablation.others) == 1 else "them"
    if not ablation.why_no_verdict:
        yield f"Verdicts and marks are for {ablation.metric.name}."
    yield (
        f"{names}: mean ± sample standard deviation over finished runs that have a value. "
        f"No verdict, and no correction counts {them}. Arrows: higher or lower is better."
    )


@once_per_table
def _leaks(ablation: Ablation) -> list[str]:
    """Files and groups that the packed data has in two splits."""
    origins = [result.data_origin for run in ablation.runs if (result := run.own_result)]
    leaks = sorted({origin.leak for origin in origins if origin} - {""})
    end = "in two splits (--allow-leak), so its scores are too good."
    return [f"The data has {leak} {end}" for leak in leaks]


def short_caption(ablation: Ablation) -> str:
    """Metric, n and intervals in one line, for readers who read nothing else."""
    n = " to ".join(dict.fromkeys(str(f(row.n for row in ablation.rows)) for f in (min, max)))
    spread, shared = "mean ± sample standard deviation", ""
    if ablation.packs:
        n += f" runs, {_seeds_each(ablation)} on each of {len(ablation.packs)} {ablation.unit}s"
        spread += f" over {'seeds and over ' * _has_several_seeds(ablation)}{ablation.unit}s"
        if any(row.test_per_train for row in ablation.rows):
            shared = ", corrected for shared samples (Nadeau and Bengio)"
    else:
        n += " seed" if n == "1" else " seeds"
    marks = ""
    if _has_intervals(ablation) and not ablation.why_no_verdict:
        marks = f" {marks_sentence()}"
    tuned = "".join(f" {sentence}" for sentence in _tuned_shortly(ablation))
    difference = ""
    if ablation.compared:
        words = _interval_words(ablation)
        difference = f"; difference to {ablation.grid.reference} {words}{shared}"
    return f"{ablation.metric.name}: {spread}, n = {n}{difference}.{marks}{tuned}"


def _has_several_seeds(ablation: Ablation) -> bool:
    """Whether a cell has a standard deviation over the seeds of a pack."""
    return any(row.deviation is not None for row in ablation.rows)


def _seeds_each(ablation: Ablation) -> str:
    """Seeds of one row on one pack: `2 seeds`, or `1 to 3 seeds`."""
    found = set[int]()
    for row in ablation.rows:
        found |= {*Counter(draw.pack for draw in {run.draw for run in row.runs}).values()}
    if len(found) == 1:
        return count(max(found), "seed")
    return f"{min(found)} to {max(found)} seeds"


def _tuned_shortly(ablation: Ablation) -> Iterator[str]:
    if ablation.tuning is not None:
        yield f"Each row tuned with {budget(ablation.tuning)}."
    elif ablation.source is None:
        yield NOT_TUNED


def _interval_words(ablation: Ablation) -> str:
    """What the intervals of differences are."""
    if not _has_intervals(ablation):
        return "without intervals"
    if ablation.why_no_verdict:
        return "with a paired t interval (95 %, not corrected for the number of rows)"
    return (
        f"with a simultaneous paired t interval (95 % for all together, Bonferroni, "
        f"{ablation.family})"
    )


def _has_intervals(ablation: Ablation) -> bool:
    return any(row.difference and row.difference.shown for row in ablation.rows)


def marks_sentence() -> str:
    """What the marks beside a difference mean."""
    better, worse = MARKS[Verdict.BETTER], MARKS[Verdict.WORSE]
    return f"{better} better, {worse} worse: the interval excludes zero, and no run is missing."


def _values(ablation: Ablation) -> str:
    """Metric, and what its mean and deviation are taken over."""
    metric, seeds = ablation.metric, ", ".join(map(str, ablation.grid.seeds))
    split = f" on the whole {metric.split} split" * (ablation.source is None)
    text = f"{metric.name}{metric.scale.unit}{split}, {metric.better} is better: "
    if not ablation.packs:
        return f"{text}mean ± sample standard deviation over n runs (seeds {seeds})."
    packs, own, unit = ", ".join(ablation.packs), "", ablation.unit
    if ablation.source is None:
        own = "Each pack and seed has its own initial weights and sample order. "
    seeds_spread, gaps = "", ""
    if _has_several_seeds(ablation):
        seeds_spread = f" ± (seeds): sample standard deviation within a {unit}, pooled."
    if any(row.n < row.n_expected for row in ablation.rows):
        gaps = f" The mean of a row that lacks runs is over the {unit}s and seeds that it has."
    return (
        f"{text}mean over {len(ablation.packs)} {unit}s ({packs}). {own}"
        f"The value of a {unit} is the mean over {_seeds_each(ablation)} of the training. "
        f"Seeds: {seeds}. n counts runs.{seeds_spread} ± ({unit}s): sample standard deviation of "
        f"the {unit}s' means.{gaps}"
    )


def _several_runs_per_seed(ablation: Ablation) -> Iterator[str]:
    if any(len(row.runs) > row.n_expected for row in ablation.rows):
        yield (
            "The value of a seed is the mean over the row's runs with it. "
            "A seed counts only if none of these runs is missing."
        )


def _selected_steps(ablation: Ablation) -> Iterator[str]:
    """The step at which the metric was measured."""
    if ablation.source is not None:
        yield from _source(ablation.source)
        return
    rules = dict.fromkeys(map(_step_rule, ablation.configs))
    yield f"Measured at {', or at '.join(rules)}."
    yield from _optimistic(ablation)


def _optimistic(ablation: Ablation) -> Iterator[str]:
    """A warning if the metric's split has selected the step."""
    if ablation.metric.split == "val" and any(map(_is_selected, ablation.configs)):
        yield "The same split selected the step, so the values are optimistic."
    others = [table.metric.name for table in ablation.others if table.metric.split == "val"]
    if others and any(map(_is_selected, ablation.configs)):
        yield f"Validation selected the step, so values of {', '.join(others)} are optimistic."


def _tuning(ablation: Ablation) -> Iterator[str]:
    """The budget that each row was tuned with, or that rows were not tuned."""
    tuning = ablation.tuning
    if ablation.source is not None:
        return
    if tuning is None:
        yield NOT_TUNED
        return
    each = "Each row on each pack" if ablation.packs else "Each row"
    device = "GPU" if tuning.on_gpus else "process"
    yield (
        f"{each} tuned with {budget(tuning)}. The trials have the same values for every row. They "
        f"took {tuning.hours:.2f} {device}-hours, which the other costs do not include."
    )
    if not ablation.packs:
        yield "Intervals do not include the variation of the search: all seeds use the same values."


def _source(source: Source) -> Iterator[str]:
    """Where the runs of another tool were read, and what is not known about them."""
    tool = f" ({source.tool})" * bool(source.tool)
    yield f"Read from {source.files}{tool}."
    if source.of_last_step:
        yield "The value of a run is its value at the last step that has one."
    yield PACKS_ARE[source.packs_are]
    yield NOT_CHECKED


def _step_rule(config: TrainConfig) -> str:
    length = list[str]()
    if config.epochs is not None:
        length = [f"{config.epochs:g} epoch{'s' * (config.epochs != 1)}"]
    if config.early_stopping:
        length.append(f"early stopping with patience {config.early_stopping.patience}")
    if not _is_selected(config):
        known = [str(config.steps)] if config.steps else []
        return f"the last step ({', '.join(known + length)})"
    every = f"evaluated every {config.evaluation.every} steps"
    if config.steps:
        every = f"evaluated every {config.evaluation.every} of {config.steps} steps"
    more = f" ({', '.join(length)})" if length else ""
    return f"the step with the best {config.selection_metric}, {every}{more}"


def _is_selected(config: TrainConfig) -> bool:
    """Whether validation selected the step. It has no choice if only the last step is evaluated."""
    has_choice = config.steps == UNKNOWN_STEPS or config.evaluation.every < config.steps
    return config.evaluation.select == "best" and has_choice


def _pairs(ablation: Ablation) -> Iterator[str]:
    """How the difference is computed. Nothing if there is none."""
    if not ablation.compared:
        return
    reference, interval, unit = ablation.grid.reference, _interval_words(ablation), ablation.unit
    if not ablation.packs:
        same = "The runs of a pair share samples, so the interval is about these samples alone."
        yield (
            f"Difference to {reference}: mean over the seeds that both rows have, {interval}."
            f"{f' {same}' * (ablation.source is None)}"
        )
        return
    why = ", because runs on one pack share its samples" * (ablation.source is None)
    yield (
        f"Difference to {reference}: runs on one {unit} with one seed form a pair. Pairs are "
        f"averaged over the seeds of a {unit}, then over {unit}s, {interval}. "
        f"Interval and tests count {unit}s{why}."
    )


def _shared_samples(ablation: Ablation) -> Iterator[str]:
    """The correction for packs that share samples."""
    if ratio := max((row.test_per_train for row in ablation.rows), default=0.0):
        yield (
            f"The packs are drawn from the same samples, so intervals and t test are the corrected "
            f"resampled ones of Nadeau and Bengio (2003): the variance of a mean over K packs is "
            f"taken as 1/K + {ratio:.2f} times that of a pack. These intervals are conservative: "
            f"in simulations they hold the true difference in more than 95 % of the studies."
        )


def _verdicts(ablation: Ablation) -> Iterator[str]:
    """What the verdicts mean."""
    if ablation.why_no_verdict:
        yield ablation.why_no_verdict
        return
    if not _has_intervals(ablation):
        if ablation.compared:
            yield "No row has an interval, so all rows are undecided."
        return
    yield marks_sentence()
    yield from _without_marks(ablation)
    yield from equivalent_sentence(ablation)
    yield "Undecided: the runs show neither, or a run of the row or the reference is missing."


def _without_marks(ablation: Ablation) -> Iterator[str]:
    verdicts = {row.verdict for row in ablation.rows}
    if Verdict.UNDECIDED in verdicts and not verdicts & MARKS.keys():
        yield "No row has a mark. This does not show that rows are equal."
        effects = ablation.effects.effects if ablation.effects else ()
        if any(effect.verdict in MARKS for effect in effects):
            yield "The effects of the factors below have marks."


def _tests(ablation: Ablation, columns: Collection[str]) -> Iterator[str]:
    """The tests, and the smallest p values that they can give."""
    differences = [row.difference for row in ablation.rows if row.difference]
    tested = [found for found in differences if found.t_p is not None]
    if not tested:
        return
    if ablation.resolution:
        yield (
            f"The standard deviation of the differences is at least one sample "
            f"(1 of {1 / ablation.resolution:,.0f})."
        )
    if "holm_p" in columns and not ablation.why_no_verdict:
        stricter = ", which is stricter," * any(found.family > 1 for found in tested)
        yield (
            f"p (Holm): paired t test, two-sided, Holm's correction for {ablation.family}. "
            f"Verdicts follow the interval{stricter} and need all runs."
        )
    numbers = sorted({found.n for found in tested if found.sign_flip_p is not None})
    unit = f"{ablation.unit}s" if ablation.packs else "pairs"
    if numbers and "sign_flip_p" in columns:
        floors = [f"{format_exact_p(sign_flip_floor(n))} with {n} {unit}" for n in numbers]
        yield (
            f"p (flip): exact paired sign-flip permutation test, not corrected. "
            f"Its smallest possible p is {', '.join(floors)}."
        )
    if "sign_flip_p" in columns and any(found.n > MAX_SIGN_FLIP for found in tested):
        yield f"p (flip) is not computed for more than {MAX_SIGN_FLIP} {unit}."
    if "effect" in columns:
        yield ("Effect: Cohen's d of the paired differences (mean divided by standard deviation).")
    yield from undertrained(ablation)


def _optional(ablation: Ablation, columns: Collection[str]) -> Iterator[str]:
    """The columns that a table has only if the grid names them."""
    found = (OPTIONAL_COLUMNS[name] for name in columns if name in OPTIONAL_COLUMNS)
    yield from (text.replace("pack", ablation.rows[0].pack_is) for text in found)


def _costs(columns: Collection[str]) -> Iterator[str]:
    if costs := "; ".join(COSTS[name] for name in columns if name in COSTS):
        yield f"{costs[0].upper()}{costs[1:]}."
