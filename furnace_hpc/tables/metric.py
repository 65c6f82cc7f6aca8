"""The metric of a table: its direction, its unit, and the digits that are shown.

This is the one place for units and digits. `config/metrics.py` has the direction of each metric.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from furnace_hpc.config.metrics import Direction


@dataclass(frozen=True)
class Scale:
    """How values of a metric are shown."""

    factor: float  # a value is multiplied by it
    digits: int  # after the decimal point
    unit: str  # of values, for a heading: it begins with a space
    difference_unit: str  # of differences

    def show(self, value: float, signed: bool = False) -> str:
        """Format one value."""
        rounded = round(value * self.factor, self.digits) + 0.0  # + 0.0 turns -0.0 into 0.0
        sign = "+" * signed
        return f"{rounded:{sign}.{self.digits}f}"

    def show_amount(self, amount: float) -> str:
        """Format a size in the shown unit: `1 point`, `0.5 points`, `0.01`."""
        unit = self.difference_unit.strip(" ()")
        if unit and amount == 1:
            unit = unit.removesuffix("s")
        return f"{amount:g} {unit}".rstrip()

    def show_interval(self, interval: tuple[float, float]) -> str:
        """Format an interval, such as `[1.6, 3.0]`."""
        low, high = interval
        return f"[{self.show(low)}, {self.show(high)}]"


PERCENT = Scale(100, 1, " (%)", " (points)")
PLAIN = Scale(1, 4, "", "")
IN_PERCENT = ("accuracy", "f1")  # how the names of metrics in percent begin
# how the names of metrics begin whose values are between 0 and 1
SHARES = (*IN_PERCENT, "map", "auc", "recall_at")


def scale_of(metric: str) -> Scale:
    """The scale of a metric, given by its full name."""
    if metric.rsplit("/", 1)[-1].startswith(IN_PERCENT):
        return PERCENT
    return PLAIN


@dataclass(frozen=True)
class Metric:
    """A metric `<split>/<task>/<short name>` and the direction in which it is better."""

    name: str
    direction: Direction

    @property
    def split(self) -> str:
        """Split on which it is measured."""
        return self.name.partition("/")[0]

    @property
    def task(self) -> str:
        """Task that it scores."""
        return self.name.partition("/")[2].rpartition("/")[0]

    @property
    def short_name(self) -> str:
        """Name without split and task, such as `accuracy`."""
        return self.name.rsplit("/", 1)[-1]

    @cached_property
    def scale(self) -> Scale:
        """How its values are shown."""
        return scale_of(self.name)

    @property
    def limits(self) -> tuple[float, float] | None:
        """Lowest and highest possible value. None if there are none."""
        if self.short_name.startswith(SHARES):
            return 0.0, 1.0
        return None

    @property
    def better(self) -> str:
        """`higher` or `lower`."""
        return {"max": "higher", "min": "lower"}[self.direction]

    def is_better(self, value: float, other: float) -> bool:
        """Whether `value` is better than `other`."""
        if self.direction == "max":
            return value > other
        return value < other

    def best_shown(self, shown: Collection[str]) -> str | None:
        """The best of several values as shown. None if there are fewer than two."""
        if len(shown) < 2:
            return None
        choose = {"max": max, "min": min}[self.direction]
        return choose(shown, key=float)
