"""Cache the results of functions that several files of a table need."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Table = TypeVar("Table")


def once_per_table(
    compute: Callable[Concatenate[Table, P], T],
) -> Callable[Concatenate[Table, P], T]:
    """Decorate a function that is called once per table and further arguments.

    The table keeps the results. Callers must not change them.
    """

    @wraps(compute)
    def known(table: Table, /, *args: P.args, **kwargs: P.kwargs) -> T:
        results = vars(table).setdefault("_results", {})
        key = (compute, args, *kwargs.items())
        if key not in results:
            results[key] = compute(table, *args, **kwargs)
        found: T = results[key]
        return found

    return known
