"""The metric of a table: its direction, its unit, and the digits that are shown.

This is the one place for units and digits. `config/metrics.py` has the direction of each metric.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from furnace_hpc.config.metrics import Direction, split_target

MAX_DIGITS = 15


@dataclass(frozen=True)
class Scale:
    """How values of a metric are shown."""

    factor: float  # a value is multiplied by it
    digits: int  # after the decimal point, of a value without a standard deviation
    unit: str  # of values, for a heading: it begins with a space
    difference_unit: str  # of differences

    def show(self, value: float, signed: bool = False) -> str:
        """Format one value."""
        rounded = round(value * self.factor, self.digits) + 0.0  # + 0.0 turns -0.0 into 0.0
        sign = "+" * signed
        return f"{rounded:{sign}.{self.digits}f}"

    def for_deviation(self, deviation: float | None, value: float | None = None) -> "Scale":
        """The scale with two significant digits of a standard deviation.

        Without one it keeps its digits, or has two significant digits of a small `value`.
        """
        digits = self.digits
        if deviation:
            digits = _two_digits(self.factor * deviation)
        elif value:
            digits = max(digits, _two_digits(self.factor * value))
        digits = min(digits, MAX_DIGITS)
        return self if digits == self.digits else replace(self, digits=digits)

    def for_interval(self, interval: tuple[float, float]) -> "Scale":
        """The scale with enough digits to show a bound that is not zero as not zero."""
        scale = self
        while scale.digits < MAX_DIGITS and any(
            bound and not float(scale.show(bound)) for bound in interval
        ):
            scale = replace(scale, digits=scale.digits + 1)
        return scale

    def show_deviation(self, deviation: float) -> str:
        """Format a standard deviation. `0` means that all values are equal."""
        text = self.show(deviation)
        return text if float(text) else "0"

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


def _two_digits(value: float) -> int:
    """Digits after the decimal point that show two significant digits of a value."""
    exponent = int(f"{value:.1e}".partition("e")[2])
    return max(0, 1 - exponent)


PERCENT = Scale(100, 1, " (%)", " (points)")
PLAIN = Scale(1, 4, "", "")
CONSISTENCY = Scale(1, 3, "", "")  # of embeddings of two modalities, such as a cosine
IN_PERCENT = ("accuracy", "f1")  # how the names of metrics in percent begin
# metrics whose values are between 0 and 1: these, and names that begin with one of them and _
SHARES = (*IN_PERCENT, "map", "auc", "recall_at")
CORRELATIONS = ("qwk", "pearson", "spearman", "ccc")  # between -1 and 1


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
    is_plain: bool = False  # whether values are shown as they are, whatever the name

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
        if self.is_plain:
            return PLAIN
        return scale_of(self.name)

    @property
    def limits(self) -> tuple[float, float] | None:
        """Lowest and highest possible value. None if there are none."""
        name = split_target(self.short_name)[0].partition("@")[0]
        if any(name == share or name.startswith(f"{share}_") for share in SHARES):
            return 0.0, 1.0
        if name in CORRELATIONS:
            return -1.0, 1.0
        return None

    @property
    def better(self) -> str:
        """`higher` or `lower`."""
        return {"max": "higher", "min": "lower"}[self.direction]
