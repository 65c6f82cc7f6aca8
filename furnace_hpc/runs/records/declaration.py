"""The declared plan of a table: what it compares, recorded before its first run starts.

`declared.json` in a grid's folder has the plans of all its tables, by the name of their results
folder: `--set` makes a table of its own. The first entry of a table is its declaration. A
submission that changes the plan appends an entry. Nothing is ever changed or removed.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import Grid, results_name
from furnace_hpc.config.grids.tune import budget_words, search_words
from furnace_hpc.config.identity import identity_hash
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.host.regular_file import IrregularFile, read_regular
from furnace_hpc.runs.folder import GridFolder, write_atomically
from furnace_hpc.runs.submitted import runs_of_table

LEVEL, CORRECTION = 0.95, "Bonferroni"  # of the intervals that decide on verdicts
MAX_NAMES = 5  # of one list
KEYS = ("reference", "metric", "direction", "sesoi", "verdicts")  # whose values a change names


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class DeclaredTuning(_Frozen):
    """The trials of each row, which choose its values before the table's runs."""

    space: dict[str, str]  # key -> distribution: `log 0.0003 to 0.03`
    trials: int
    seeds: tuple[int, ...]
    metric: str

    def __str__(self) -> str:
        """`12 trials of optimizer.lr (log 0.0003 to 0.03) on seeds 100, 101 by ...`."""
        space = [f"{key} ({words})" for key, words in self.space.items()]
        return budget_words(self.trials, space, self.seeds, self.metric)


class DeclaredPlan(_Frozen):
    """What a table compares, and how."""

    rows: dict[str, str]  # row -> hash of its config, without seed and pack
    seeds: tuple[int, ...]
    packs: tuple[str, ...] = ()
    data: dict[str, str] = {}  # data set -> fingerprint
    reference: str
    metric: str
    direction: str
    sesoi: float | None = None
    sanity: tuple[str, ...] = ()
    sources: tuple[str, ...] | None = None  # rows that are not compared; None if not recorded
    by: tuple[str, ...] = ()
    level: float = LEVEL
    correction: str = CORRECTION
    family: int  # rows that are compared with the reference
    verdicts: str = "both"  # rows, effects of factors, or both
    tune: DeclaredTuning | None = None  # None if rows are not tuned
    code: str = ""  # hash of the code that new runs begin with; empty if none began
    adopted: tuple[str, ...] = ()  # ids of runs that were finished under another name


class Declared(_Frozen):
    """One entry: a plan, and whether anybody could have looked at results before."""

    unix_s: float
    runs_with_results: int  # when the plan was recorded
    plan: DeclaredPlan

    @property
    def day(self) -> str:
        """Its day in UTC."""
        return time.strftime("%Y-%m-%d", time.gmtime(self.unix_s))


class _File(_Frozen):
    tables: dict[str, tuple[Declared, ...]]  # oldest first


def plan_of(
    grid: Grid,
    configs: Mapping[str, TrainConfig],
    data: Mapping[str, str],
    code: str = "",
    adopted: Sequence[str] = (),
) -> DeclaredPlan:
    """The plan of a grid's table.

    Args:
        grid: the grid with its settings.
        configs: row -> config of any of its runs, without values that trials choose.
        data: data set -> fingerprint.
        code: hash of the code that new runs begin with. Empty if none begins.
        adopted: ids of runs that were finished under another name.
    """
    return DeclaredPlan(
        rows={name: _row_hash(grid, config) for name, config in configs.items()},
        seeds=grid.seeds,
        packs=grid.packs,
        data=dict(data),
        reference=grid.reference,
        metric=grid.metric,
        direction=grid.direction,
        sesoi=grid.sesoi,
        sanity=grid.sanity,
        sources=grid.sources,
        by=grid.by,
        family=len(configs.keys() - {grid.reference, *grid.sources}),
        verdicts=grid.verdicts,
        tune=_tuning_of(grid),
        code=code,
        adopted=tuple(adopted),
    )


def _tuning_of(grid: Grid) -> DeclaredTuning | None:
    if grid.tune is None:
        return None
    return DeclaredTuning(
        space={key: search_words(search) for key, search in grid.tune.space.items()},
        trials=grid.tune.trials,
        seeds=grid.tune.seeds,
        metric=grid.tuning_metric,
    )


def read_declared(folder: GridFolder, grid: Grid) -> tuple[Declared, ...]:
    """The entries of a grid's table, oldest first. Empty if no plan was recorded.

    Raises:
        ConfigError: the file is damaged.
    """
    return _read(folder).get(results_name(grid), ())


def declare(
    folder: GridFolder, grid: Grid, plan: DeclaredPlan, done: Collection[str]
) -> Declared | None:
    """Record the plan of a submission, if it is the first of its table or differs from the newest.

    The caller holds the grid's lock.

    Args:
        folder: folder of the grid's runs.
        grid: the grid with its settings.
        plan: the plan of its table. It may lack what this submission does not use: data sets, the
            code if no run begins, and runs that were adopted before.
        done: ids of planned runs that have a result.

    Returns:
        The new entry. None if the newest entry has this plan.

    Raises:
        ConfigError: the file is damaged.
    """
    tables = _read(folder)
    entries = tables.get(results_name(grid), ())
    if entries:
        before = entries[-1].plan
        plan = _completed(plan, before)
        known = {"sources", "family"} if before.sources is None else set[str]()
        if plan.model_dump(exclude=known) == before.model_dump(exclude=known):
            return None
    looked_at = {*done, *_with_results(folder, runs_of_table(folder, grid))}
    added = Declared(unix_s=_now_s(), runs_with_results=len(looked_at), plan=plan)
    content = _File(tables=tables | {results_name(grid): (*entries, added)})
    write_atomically(folder.declared, content.model_dump_json(indent=1) + "\n")
    return added


def _completed(plan: DeclaredPlan, before: DeclaredPlan) -> DeclaredPlan:
    """The plan with what an earlier submission declared and this one does not use."""
    update = {
        "data": before.data | plan.data,
        "code": plan.code or before.code,
        "adopted": tuple(dict.fromkeys((*before.adopted, *plan.adopted))),
    }
    return plan.model_copy(update=update)


def changes(before: DeclaredPlan, after: DeclaredPlan) -> list[str]:
    """What the second plan changes, as clauses: `seeds 5 to 9 were added`."""
    found = [*_moved("row", list(before.rows), list(after.rows))]
    both = before.rows.keys() & after.rows.keys()
    if other := [name for name in after.rows if name in both and _differ(name, before, after)]:
        found.append(f"the config of {_named('row', other)} was changed")
    found += _moved("seed", before.seeds, after.seeds)
    found += _moved("pack", before.packs, after.packs)
    repacked = [name for name, of in after.data.items() if before.data.get(name, of) != of]
    if repacked:
        found.append(f"the data of {_named('data set', repacked)} were changed")
    for key in KEYS:
        old, new = getattr(before, key), getattr(after, key)
        if old != new:
            found.append(f"the {key} was changed from {_value(old)} to {_value(new)}")
    found += _moved("sanity row", before.sanity, after.sanity)
    if before.sources is not None:
        found += _moved("source", before.sources, after.sources or ())
    for key in ("by", "tune"):
        old, new = getattr(before, key), getattr(after, key)
        if old != new:
            found.append(f"the key {key} was changed from {_value(old)} to {_value(new)}")
    tests = [f"{plan.level:.0%} and {plan.correction}" for plan in (before, after)]
    if tests[0] != tests[1]:
        found.append(f"the level and correction were changed from {tests[0]} to {tests[1]}")
    if before.code and after.code and before.code != after.code:
        found.append(f"the code was changed from {before.code} to {after.code}")
    if adopted := [run_id for run_id in after.adopted if run_id not in before.adopted]:
        was = "was" if len(adopted) == 1 else "were"
        runs = _named("run", adopted)
        found.append(f"{runs} {was} adopted, finished under another name")
    return found


def numbers(values: Sequence[int]) -> str:
    """Seeds as text: `0 to 4`, or `0, 1 and 7`."""
    if len(values) > 2 and list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return join([str(value) for value in values])


def join(names: Sequence[str]) -> str:
    """Names as text: `a, b and c`. A long list is shortened."""
    if len(names) > MAX_NAMES:
        return f"{', '.join(names[:MAX_NAMES])} and {len(names) - MAX_NAMES} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _now_s() -> float:
    return round(time.time(), 3)


def _read(folder: GridFolder) -> dict[str, tuple[Declared, ...]]:
    try:
        return _File.model_validate_json(read_regular(folder.declared)).tables
    except FileNotFoundError:
        return {}
    except (ValidationError, IrregularFile):
        raise ConfigError(
            f"{folder.declared} is damaged. Restore it, or move it away: the next submission "
            f"then declares the plan with the runs that have results by now"
        ) from None


def _row_hash(grid: Grid, config: TrainConfig) -> str:
    """Hash of what all runs of a row have in common."""
    common: dict[str, Any] = {"seed": 0, "pack_seed": None}
    if grid.packs:
        common["data"] = config.data.model_copy(update={"name": ""})
    return identity_hash(config.model_copy(update=common), "")


def _with_results(folder: GridFolder, run_ids: Collection[str]) -> set[str]:
    """The runs that have a result, or had one before `--code new` moved them aside."""
    replaced = {path.parent.stem for path in folder.replaced.glob("*/result.json")}
    return {run for run in run_ids if run in replaced or folder.run(run).result.is_file()}


def _differ(name: str, before: DeclaredPlan, after: DeclaredPlan) -> bool:
    return before.rows[name] != after.rows[name]


def _moved(noun: str, before: Sequence[Any], after: Sequence[Any]) -> Iterator[str]:
    """What was added and removed."""
    for verb, ours, theirs in (("added", after, before), ("removed", before, after)):
        if names := [name for name in ours if name not in theirs]:
            was = "was" if len(names) == 1 else "were"
            yield f"{_named(noun, names)} {was} {verb}"


def _named(noun: str, names: Sequence[Any]) -> str:
    """Noun and names: `seeds 5 to 9`, `row full`."""
    plural = "s" * (len(names) > 1)
    if noun == "seed":
        return f"seed{plural} {numbers(sorted(names))}"
    return f"{noun}{plural} {join(names)}"


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return " and ".join(value) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def describe_results(number: int) -> str:
    """When a plan was recorded: `after 20 runs had results`, or before any had."""
    if not number:
        return "before any run had a result"
    verb = "a result" if number == 1 else "results"
    return f"after {counted(number, 'run')} had {verb}"
