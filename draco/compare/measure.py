"""The metric by which a comparison ranks: accuracy where every cell has one, else what the grid names, or the loss."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from draco import metrics
from draco.metrics import Mode


class Measure(NamedTuple):
    """A metric, and whether the least or the most of it is best."""

    metric: str
    mode: Mode

    @property
    def is_accuracy(self) -> bool:
        """Whether it is a fraction, shown in percent."""
        return self.metric == "top1"

    @property
    def column(self) -> str:
        """The column of its value after the last step."""
        return "accuracy" if self.is_accuracy else f"final_{self.metric}"

    @property
    def axis(self) -> str:
        """What stands at an axis with its values."""
        return "test accuracy, %" if self.is_accuracy else f"test {self.metric}"

    @property
    def scale(self) -> float:
        """What its values are multiplied by where they are shown."""
        return 100.0 if self.is_accuracy else 1.0

    def text(self, value: float, spread: float | None = None) -> str:
        """Return a value as it is shown, with a standard deviation where there is one."""
        if self.is_accuracy:
            return f"{value:.1%}" + ("" if spread is None else f" ± {spread * 100:.1f}")
        return f"{value:.4g}" + ("" if spread is None else f" ± {spread:.2g}")

    def merit(self, value: float) -> float:
        """Return a number that is the higher the better the value is."""
        return metrics.merit(value, self.mode)

    def worst(self, values: Iterable[float]) -> float:
        """Return the worst of some values; what is no number is worse than all."""
        return min(values, key=self.merit)


ACCURACY, LOSS = Measure("top1", "max"), Measure("loss", "min")


def chosen(metric: str | None, mode: Mode | None, evaluated: Iterable[Sequence[Mapping[str, Any]]]) -> Measure:
    """Return the measure of a comparison; `evaluated` are the evaluations of each cell.

    Raises:
        ValueError: a metric is named that none of them has.
    """
    if metric is not None:
        found = metrics.ordered(name for each in evaluated for e in each for name in metrics.recorded(e))
        if found and metric not in found:
            raise ValueError(f"the evaluations have no {metric}, they have {', '.join(found)}")
        return Measure(metric, metrics.mode_of(metric, mode))
    return ACCURACY if all("top1" in e for each in evaluated for e in each) else LOSS


def value(evaluation: Mapping[str, Any], metric: str) -> float:
    """Return a metric in the record of an evaluation; not a number where it has none of that name."""
    return metrics.recorded(evaluation).get(metric, math.nan)
