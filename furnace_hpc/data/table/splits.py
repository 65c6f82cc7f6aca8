"""Divide the rows of a table into train, val and test, with scikit-learn's splitters."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import SPLITS
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.data.table.options import SplitOptions, split_of
from furnace_hpc.data.table.staging import Staged

UNUSED = 255  # code of a row that is in no split
TRAIN, VAL, TEST = range(3)  # codes, in the order of SPLITS
MAX_SHOWN = 20  # values of a split column in an error
Codes = NDArray[np.uint8]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class RowNumbers(Sequence[Any]):
    """The numbers of a split's rows, in order. A slice of it is small and can be pickled."""

    numbers: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return self.numbers[index]


def split_rows(staged: Staged, options: SplitOptions, has_groups: bool) -> list[Codes]:
    """Return the split of each row, once for each pack.

    Raises:
        ConfigError: there is no information on splits, or too few rows or groups.
    """
    codes = _given_splits(staged, options)
    groups = _numbered(staged, "group") if has_groups else None
    strata = _strata(staged, options.stratify) if options.stratify else None
    if options.folds is not None:
        if codes is not None:
            raise ConfigError(
                "--folds divides all rows, but the table already has splits. Leave out the "
                "splits or --folds"
            )
        return list(_folds(staged.num_rows, options.folds, groups, strata, options.seed))
    if codes is None:
        if len(options.parts) != 3:
            raise ConfigError(
                "the table has no splits. Give --split 80/10/10, or the column that has them "
                "with --split-column, or one file per split with --train, --val and --test"
            )
        divided = _divided(np.arange(staged.num_rows), options.parts, groups, strata, options.seed)
        return [divided]
    return [_completed(codes, options, groups, strata)]


def _given_splits(staged: Staged, options: SplitOptions) -> Codes | None:
    """Return the splits that the table has. None if it has none."""
    found = staged.frame.group_by("split").len().collect(engine="streaming")
    counts = dict(found.iter_rows())
    if set(counts) == {None}:
        return None
    meaning = {value: _meaning(value, options, counts) for value in counts if value is not None}
    if None in counts:
        row = staged.frame.filter(pl.col("split").is_null()).select("file", "row").head(1).collect()
        raise ConfigError(
            f"{staged.name_of(*row.row(0))} has no split ({counted(counts[None], 'row')} in all). "
            "Fill in the column, or leave it out and give --split 80/10/10"
        )
    codes = pl.col("split").replace_strict(
        list(meaning), list(meaning.values()), return_dtype=pl.UInt8
    )
    return staged.frame.select(codes).collect(engine="streaming")["split"].to_numpy()


def _meaning(value: str, options: SplitOptions, counts: dict[Any, int]) -> int:
    if value in options.test_values:
        return TEST
    if value in options.val_values:
        return VAL
    for given, option in (
        (options.test_values, "--test-value"),
        (options.val_values, "--val-value"),
    ):
        if wrong := [name for name in given if name not in counts]:
            raise ConfigError(
                f"{option} {wrong[0]!r} is not in the split column; {_values(counts)}"
            )
    if options.test_values or options.val_values:
        return TRAIN
    split = split_of(value)
    if split is None:
        raise ConfigError(
            f"the split column has the value {value!r}, wanted train, val and test. Name the "
            f"values with --val-value and --test-value; {_values(counts)}"
        )
    return SPLITS.index(split)


def _values(counts: dict[Any, int]) -> str:
    names = sorted(str(name) for name in counts)
    more = "" if len(names) <= MAX_SHOWN else f" and {len(names) - MAX_SHOWN:,} more"
    return f"it has {', '.join(names[:MAX_SHOWN])}{more}"


def _completed(
    codes: Codes, options: SplitOptions, groups: Numbers | None, strata: Numbers | None
) -> Codes:
    """Take a missing val or test split from train, in the proportion of `--split`."""
    has = [bool((codes == code).any()) for code in (TRAIN, VAL, TEST)]
    if all(has):
        if options.parts:
            raise ConfigError(
                "--split is given, but the table already has train, val and test. Leave it out"
            )
        return codes
    missing = [name for name, found in zip(SPLITS, has, strict=True) if not found]
    if missing == ["val"] or missing == ["test"]:
        if len(options.parts) != 2:
            raise ConfigError(
                f"the table has no {missing[0]} split. Give --split 90/10 to take 10 % of the "
                f"train rows for {missing[0]}"
            )
        rows = np.flatnonzero(codes == TRAIN)
        divided = _divided(rows, (*options.parts, 0), groups, strata, options.seed)
        codes = codes.copy()
        codes[rows[divided == VAL]] = SPLITS.index(missing[0])
        return codes
    raise ConfigError(
        f"the table has no {' and no '.join(missing)} split. Leave out the split column and give "
        "--split 80/10/10"
    )


def _divided(
    rows: Numbers,
    parts: tuple[int, ...],
    groups: Numbers | None,
    strata: Numbers | None,
    seed: int,
) -> Codes:
    """Draw the split of each of these rows: first test, then val from the rest."""
    if len(rows) < 3:
        named = counted(len(rows), "row")
        raise ConfigError(f"the table has {named}, wanted at least 3 for three splits")
    codes = np.zeros(len(rows), np.uint8)
    left = np.arange(len(rows))
    total = sum(parts)
    for code, part in ((TEST, parts[2]), (VAL, parts[1])):
        if not part:
            continue
        own_groups = None if groups is None else groups[rows[left]]
        own_strata = None if strata is None else strata[rows[left]]
        drawn = _drawn(len(left), part / total, own_groups, own_strata, seed + code)
        codes[left[drawn]] = code
        left = np.delete(left, drawn)
        total -= part
    return codes


def _drawn(
    num_rows: int, share: float, groups: Numbers | None, strata: Numbers | None, seed: int
) -> Numbers:
    """Draw a share of the rows. Rows of a group stay together, and strata keep their shares.

    Raises:
        ConfigError: there are too few groups or rows of a class.
    """
    if groups is None and strata is None:
        return _shuffled(num_rows, share, seed)
    from sklearn.model_selection import (
        GroupShuffleSplit,
        StratifiedGroupKFold,
        StratifiedShuffleSplit,
    )

    empty = np.zeros(num_rows, np.uint8)
    splitter: Any
    if groups is not None and strata is not None:
        # `share` is a whole number of per cent of what is left, so this rounds to a near fraction
        splitter = StratifiedGroupKFold(max(2, round(1 / share)), shuffle=True, random_state=seed)
    elif groups is not None:
        splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
    else:
        assert strata is not None
        _check_strata(strata)
        splitter = StratifiedShuffleSplit(1, test_size=share, random_state=seed)
    try:
        _, drawn = next(iter(_quiet(splitter, empty, strata, groups)))
    except ValueError as error:
        raise ConfigError(
            f"the rows cannot be split ({error}). Give other shares with --split, or leave out "
            "--group or --stratify"
        ) from None
    return np.sort(drawn)


def _shuffled(num_rows: int, share: float, seed: int) -> Numbers:
    """Draw as scikit-learn's `ShuffleSplit`, whose import takes seconds."""
    num_drawn = math.ceil(share * num_rows)
    if num_drawn >= num_rows:
        raise ConfigError(
            f"the rows cannot be split: {share:.0%} of {counted(num_rows, 'row')}, rounded up, "
            "leaves none. Give other shares with --split"
        )
    return np.sort(np.random.RandomState(seed).permutation(num_rows)[:num_drawn])


def _quiet(splitter: Any, rows: Any, strata: Any, groups: Any) -> Iterator[tuple[Numbers, Numbers]]:
    import warnings

    with warnings.catch_warnings():
        # A class with fewer rows than folds: the profile shows which split lacks it.
        warnings.simplefilter("ignore", UserWarning)
        yield from splitter.split(rows, strata, groups)


def _check_strata(strata: Numbers) -> None:
    """Raise ConfigError if a class has only one row: no split can keep its share."""
    counts = np.bincount(strata)
    if alone := int((counts == 1).sum()):
        raise ConfigError(
            f"--stratify cannot divide classes of one row ({alone:,} in all). Leave out "
            "--stratify, or remove these rows"
        )


def _folds(
    num_rows: int, folds: int, groups: Numbers | None, strata: Numbers | None, seed: int
) -> Iterator[Codes]:
    """Yield the splits of each pack: fold K is test, the next fold is val, all others train."""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    if folds < 3:
        raise ConfigError(f"--folds is {folds}, wanted at least 3: test, val and train")
    splitter: Any
    options = {"n_splits": folds, "shuffle": True, "random_state": seed}
    if groups is not None and strata is not None:
        splitter = StratifiedGroupKFold(**options)
    elif groups is not None:
        splitter = GroupKFold(**options)
    elif strata is not None:
        splitter = StratifiedKFold(**options)
    else:
        splitter = KFold(**options)
    fold_of = np.zeros(num_rows, np.uint8)
    try:
        for number, (_, drawn) in enumerate(
            _quiet(splitter, np.zeros(num_rows, np.uint8), strata, groups)
        ):
            fold_of[drawn] = number
    except ValueError as error:
        raise ConfigError(f"--folds {folds} is not possible ({error}). Give fewer folds") from None
    for fold in range(folds):
        codes = np.full(num_rows, TRAIN, np.uint8)
        codes[fold_of == fold] = TEST
        codes[fold_of == (fold + 1) % folds] = VAL
        yield codes


def _numbered(staged: Staged, column: str) -> Numbers:
    """Return a number for each row. Rows with the same value have the same number.

    A row without a value has a number of its own.
    """
    hashes = staged.frame.select(pl.col(column).hash(seed=0)).collect(engine="streaming")[column]
    empty = staged.frame.select(pl.col(column).is_null()).collect(engine="streaming")[column]
    numbers = _by_first_row(hashes.to_numpy())
    if empty.any():
        alone = empty.to_numpy()
        numbers[alone] = numbers.max() + 1 + np.arange(int(alone.sum()))
    return numbers


def _strata(staged: Staged, label: str) -> Numbers:
    """Return the class of each row. Rows with several labels count as their whole set."""
    column = f"label.{label}"
    schema = staged.frame.collect_schema()
    if column not in schema:
        names = [name.removeprefix("label.") for name in schema if name.startswith("label.")]
        raise ConfigError(f"--stratify {label!r} is not a label; valid: {', '.join(names)}")
    value = pl.col(column)
    if schema[column] == pl.List(pl.Float64):
        raise ConfigError(f"--stratify {label!r} has numbers. Choose a label with classes")
    if isinstance(schema[column], pl.List):
        value = value.list.sort().list.join("\n")
    frame = staged.frame.select(value.fill_null("").hash(seed=0)).collect(engine="streaming")
    return _by_first_row(frame[column].to_numpy())


def _by_first_row(hashes: NDArray[np.uint64]) -> Numbers:
    """Number values in the order of their first rows, so the splits do not depend on the hash."""
    _, first, numbers = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[numbers]


def rows_of(codes: Codes) -> dict[str, RowNumbers]:
    """Return split -> its rows, in the order of the table."""
    return {
        split: RowNumbers(np.flatnonzero(codes == code).astype(np.uint32))
        for code, split in enumerate(SPLITS)
    }
