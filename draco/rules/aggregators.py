"""A class an aggregator: `draco.Krum(f=2)(gradients)` is `draco.aggregate(gradients, "krum", f=2)`.

What each promises, its least n, source and errors are told by `help(draco.Krum)`, from the function beside which the
rule is declared. `f` is always the first argument, and the only one that may be given by place.

Shapes: n gradients, d parameters, f declared Byzantine rows.
"""

from __future__ import annotations

from typing import Any, Literal

from draco.aggregators import AGGREGATORS
from draco.given import as_count
from draco.rules.rule import Rule


class Mean(Rule):
    """The mean of the rows, (n, d) -> (d,), which tolerates no Byzantine one."""

    declaration = AGGREGATORS["mean"]

    def __init__(self, f: int = 0) -> None:
        super().__init__(f)


class Median(Rule):
    """The median of every coordinate, (n, d) -> (d,), for n >= 2f + 1 (arXiv:1803.01498)."""

    declaration = AGGREGATORS["median"]

    def __init__(self, f: int = 0) -> None:
        super().__init__(f)


class TrimmedMean(Rule):
    """The mean of every coordinate without its f largest and f smallest values, (n, d) -> (d,) (arXiv:1803.01498)."""

    declaration = AGGREGATORS["trimmed_mean"]

    def __init__(self, f: int = 0) -> None:
        super().__init__(f)


class Meamed(Rule):
    """The mean of every coordinate's n - f values nearest to its median, (n, d) -> (d,) (arXiv:1802.10116)."""

    declaration = AGGREGATORS["meamed"]

    def __init__(self, f: int = 0) -> None:
        super().__init__(f)


class SignMajority(Rule):
    """The sign that most rows have in every coordinate, -1, 0 or 1, (n, d) -> (d,) (arXiv:1810.05291)."""

    declaration = AGGREGATORS["sign_majority"]

    def __init__(self, f: int = 0) -> None:
        super().__init__(f)


class MedianOfMeans(Rule):
    """The geometric median of the means of `groups` of rows, (n, d) -> (d,) (arXiv:1705.05491)."""

    declaration = AGGREGATORS["median_of_means"]

    def __init__(self, f: int = 0, *, groups: int | None = None) -> None:
        super().__init__(f, groups=groups)


class GeometricMedian(Rule):
    """The point with the least sum of distances to the rows, (n, d) -> (d,) (arXiv:1705.05491)."""

    declaration = AGGREGATORS["geometric_median"]

    def __init__(self, f: int = 0, *, nu: float = 0.0, backend: Literal["gram", "hdmedians"] = "gram") -> None:
        super().__init__(f, nu=nu, backend=backend)


class Krum(Rule):
    """The row with the least sum of squared distances to its nearest others, (n, d) -> (d,) (arXiv:1703.02757)."""

    declaration = AGGREGATORS["krum"]

    def __init__(self, f: int = 0, *, neighbours: int | None = None) -> None:
        super().__init__(f, neighbours=neighbours)


class MultiKrum(Rule):
    """The mean of the m rows with the least Krum scores, (n, d) -> (d,) (arXiv:1703.02757)."""

    declaration = AGGREGATORS["multi_krum"]

    def __init__(self, f: int = 0, *, m: int | None = None, neighbours: int | None = None) -> None:
        super().__init__(f, m=m, neighbours=neighbours)


class Bulyan(Rule):
    """The mean of each coordinate's middle values of rows that Krum selects, (n, d) -> (d,) (arXiv:1802.07927)."""

    declaration = AGGREGATORS["bulyan"]

    def __init__(self, f: int = 0) -> None:
        super().__init__(f)


class MDA(Rule):
    """The mean of the n - f rows whose greatest distance is least, (n, d) -> (d,) (arXiv:1905.03853)."""

    declaration = AGGREGATORS["mda"]

    def __init__(self, f: int = 0) -> None:
        super().__init__(f)


class SMEA(Rule):
    """The mean of the n - f rows of least greatest eigenvalue of the covariance, (n, d) -> (d,) (arXiv:2302.04787)."""

    declaration = AGGREGATORS["smea"]

    def __init__(self, f: int = 0) -> None:
        super().__init__(f)


class CAF(Rule):
    """A mean in which rows far out in the direction of most variance lose weight, (n, d) -> (d,) (arXiv:2505.01874)."""

    declaration = AGGREGATORS["caf"]

    def __init__(self, f: int = 0) -> None:
        super().__init__(f)


class CenteredClipping(Rule):
    """A centre after clipped steps towards the rows, (n, d) -> (d,) (arXiv:2012.10333).

    It remembers nothing. Where the paper goes on from the last step's result, make a new one with `centre=last`.
    """

    declaration = AGGREGATORS["centered_clipping"]

    def __init__(self, f: int = 0, *, tau: float = 100.0, iterations: int = 1, centre: Any = None) -> None:
        super().__init__(f, tau=tau, iterations=iterations, centre=centre)


class MoNNA(Rule):
    """The mean of the n - f rows nearest to a trusted one, (n, d) -> (d,) (arXiv:2209.10931)."""

    declaration = AGGREGATORS["monna"]

    def __init__(self, f: int = 0, *, reference: Any = 0) -> None:
        row = isinstance(reference, int) or not hasattr(reference, "__len__")
        if row and as_count("monna", "reference", reference) < 0:
            raise ValueError(f"monna: reference = {reference}; it must be 0 or more")
        super().__init__(f, reference=reference)


class CGE(Rule):
    """The mean of the n - f shortest rows, (n, d) -> (d,) (arXiv:2008.04699)."""

    declaration = AGGREGATORS["cge"]

    def __init__(self, f: int = 0) -> None:
        super().__init__(f)
