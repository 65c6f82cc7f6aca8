"""Text on tuning: the budget of each row, and notes on the choices."""

from collections.abc import Iterator

from furnace_hpc.config.grids.tune import budget_words, is_at_border, space_words
from furnace_hpc.tables.text import count, format_value, list_names
from furnace_hpc.tables.tuning.tuned_rows import Tuning


def budget(tuning: Tuning) -> str:
    """The budget of each row, for a caption: `12 trials of optimizer.lr (...) on seeds ...`."""
    tune = tuning.tune
    return budget_words(tune.trials, space_words(tune), tune.seeds, tuning.metric.name)


def tuning_notes(tuning: Tuning) -> Iterator[tuple[str, str]]:
    """(row, note) on the choice of each row: values at the border, and failed trials."""
    for name, row in tuning.rows.items():
        for choice in row.choices:
            on_pack = f" on {choice.pack}" * (row.num_packs > 1)
            for key, value in choice.values.items():
                if is_at_border(tuning.tune, key, value):
                    yield (
                        name,
                        f"the chosen {key} {format_value(value)}{on_pack} is the lowest or highest "
                        f"value tried. A better one may lie beyond it",
                    )
            equal = [tried for tried in choice.trials if tried.mean == choice.best]
            if len(equal) > 1:
                numbers = ", ".join(str(tried.trial) for tried in equal)
                yield name, f"trials {numbers}{on_pack} are equally good, and the first was chosen"
            if failed := choice.failed:
                reasons = list_names([tried.failures[0] for tried in failed])
                yield (
                    name,
                    f"{len(failed)} of {count(len(choice.trials), 'trial')}{on_pack} failed and "
                    f"{'counts' if len(failed) == 1 else 'count'} as the worst: {reasons}",
                )
