"""A class a pre-aggregator: `draco.NNM(f=2)(gradients)` gives rows for a rule, `krum(nnm(gradients))`.

What each does to the rows, its source and errors are told by `help(draco.NNM)`, from the function beside which it is
declared. Rows with NaN or Inf are dropped, so that fewer may come out, of which fewer are Byzantine.

Shapes: n gradients, d parameters, f declared Byzantine rows, m mixed rows.
"""

from __future__ import annotations

from draco.aggregators import PRE_AGGREGATORS
from draco.lazy import torch
from draco.rules.rule import PreRule


class NNM(PreRule):
    """Nearest-neighbour mixing: for every row the mean of the n - f nearest, (n, d) -> (n, d) (arXiv:2302.01772)."""

    declaration = PRE_AGGREGATORS["nnm"]

    def __init__(self, f: int = 0) -> None:
        super().__init__(f)


class Bucketing(PreRule):
    """The means of random buckets of `size` rows, (n, d) -> (ceil(n / size), d) (arXiv:2006.09365)."""

    declaration = PRE_AGGREGATORS["bucketing"]

    def __init__(self, f: int = 0, *, size: int = 2, generator: torch.Generator) -> None:
        if generator is None:
            raise ValueError("bucketing: draws at random and needs a generator")
        super().__init__(f, size=size, generator=generator)


class Clipping(PreRule):
    """The rows, those longer than c cut to length c, (n, d) -> (n, d) (arXiv:2405.14432)."""

    declaration = PRE_AGGREGATORS["clipping"]

    def __init__(self, f: int = 0, *, c: float = 2.0) -> None:
        super().__init__(f, c=c)


class ARC(PreRule):
    """Adaptive robust clipping: the longest rows cut to the next one's length, (n, d) -> (n, d) (arXiv:2405.14432)."""

    declaration = PRE_AGGREGATORS["arc"]

    def __init__(self, f: int = 0) -> None:
        super().__init__(f)
