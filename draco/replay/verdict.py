"""What a replay came to: the verdict on a transcript, or the sentence that convicts its sender."""

from typing import NamedTuple


class CheatError(Exception):
    """A transcript that no honest worker sends; the sentence names operation, product, shape and residual."""


class Verdict(NamedTuple):
    """A transcript whose every product passed its check."""

    products: int  # that were taken from it
    worst: float  # the largest residual, relative to what rounding may do; at most the tolerance
    where: str  # the operation and the number of that product; empty where there was none
