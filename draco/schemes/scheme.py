"""What a scheme is: one value that holds the paper's triple of assignment, encoder and decoder.

Source: Chen, Wang, Charles, Papailiopoulos, DRACO, ICML 2018 (arXiv:1803.09877), section 2: (A, E, D).
Shapes: n workers, k partitions, d parameters, m gradients after decoding, load = partitions of one row; a reply has
e = `Scheme.elements(d)` elements, d unless the scheme says otherwise.
A row is a position in the code, not a rank: the server hands out rows from a fresh secret permutation every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from draco.declaration import Declaration
from draco.lazy import Tensor, torch


class Decoded(NamedTuple):
    """What the server makes of one step's replies."""

    # (m, d) float32: free of adversaries, up to what the scheme promises; their mean is the step's. Where replies were
    # padded there are more than d columns, and the first d count.
    gradients: Tensor
    suspects: tuple[int, ...]  # rows whose reply was not what an honest worker would have sent, increasing
    error: float | None = None  # of an approximate scheme: L2 norm of its error or a bound on it; None: exact


class Encode(Protocol):
    """The worker's part."""

    def __call__(self, row: int, gradients: Tensor) -> Tensor:
        """Return what row `row` sends, (e,), for the gradients (load, d) of its partitions in increasing order."""


class Inspection(Protocol):
    """Decode work done reply by reply, while later replies are still on their way."""

    def add(self, row: int) -> None:
        """Take note of `replies[row]`, which has just arrived and will not change any more."""


class Decode(Protocol):
    """The server's part."""

    def __call__(
        self,
        replies: Tensor,
        arrived: npt.NDArray[np.bool_] | None = None,
        *,
        seed: int | None = None,
        inspection: Inspection | None = None,
    ) -> Decoded:
        """Return the gradients that honest workers would have given.

        Args:
            replies: (n, e) by row; not changed, though the result may be a view of it.
            arrived: (n,) bool; rows that are False never came (or were refused) and their content is not read.
            seed: of this step's secret projections; drawn from the operating system where None.
            inspection: what `Scheme.inspect` began for these replies and `add` was told of every arrived row.

        Raises:
            DecodeError: what arrived cannot be decoded within the scheme's promise.
            ValueError: the shape or the dtype of `replies` is wrong.
        """


def _same(d: int) -> int:
    return d


class Scheme(NamedTuple):
    """One scheme, built for n workers and s adversaries."""

    name: str
    workers: int  # n
    adversaries: int  # s
    redundancy: int  # the most partitions that one worker computes
    assignment: npt.NDArray[np.bool_]  # (n, k): row i computes partition j
    weights: npt.NDArray[np.float64] | None  # (n, k): row i sends sum_j weights[i, j] g_j; None where not real-linear
    encode: Encode
    decode: Decode
    inspect: Callable[[Tensor, int], Inspection] | None  # (replies (n, e), seed); None: nothing can be done early
    dtype: torch.dtype  # of a reply on the wire before any rounding asked for by the job
    amplification: float | None  # worst relative error of the result per relative error of a reply; None: exact
    summary: str  # one line for the user at the start of a job
    elements: Callable[[int], int] = _same  # d -> e
    exact: bool = True  # with every row there, decoding gives the mean of all partitions but for `bad` ones
    stragglers: int = 0  # rows that the server need not wait for
    bad: int = 0  # the most of the decoded gradients that s adversaries may make wrong, or leave without a majority

    def groups(self) -> list[int] | None:
        """Return the group of every row, where rows of a group compute the same and nobody else any of it; else None.

        A group is named by its first partition. Where every row is a group of its own there are none.
        """
        mine = self.assignment.argmax(1)  # the first partition of each row
        theirs = mine[self.assignment.argmax(0)]  # that of the first row that computes a partition
        if len({*mine}) == self.workers or not np.array_equal(self.assignment, mine[:, None] == theirs):
            return None
        return [int(first) for first in mine]

    def bears(self, absent: Sequence[int], suspects: Sequence[int], left: int | None = None) -> bool:
        """Say whether what was decoded without the rows `absent` is right, whoever the up to s liars are.

        Absent rows need not be liars: s may lie among the rest. A code of distance 2s + 1 has distance 2s + 1 - a
        without a of its rows, so what leaves w suspects is the truth, not s liars' forgery, where w + s < 2s + 1 - a:
        w + a <= s. Rows of a group have a code of their own. (2w + a <= 2s, up to which decoding may succeed, would
        count on liars to be among the absent.) A partition that fewer than 2s + 1 rows compute bears no absence.
        Stragglers are borne whatever they cost: `Decoded.error` tells. Who promises no mean bears nothing else.

        Where some gradients may be `bad`, the others must each have the majority of all rows that compute it, absent
        or not, so absence makes none of them worse. But it may leave one without a majority that needs fewer liars for
        that, who then have more left for the others: all gradients must be among the `left` ones.
        """
        if len(absent) <= self.stragglers:
            return True
        if not self.exact:
            return False
        if self.bad:
            return left == len(self.assignment[0])
        groups = self.groups() or [0] * self.workers
        wrong = Counter(groups[row] for row in {*absent, *suspects})
        return int(self.assignment.sum(0).min()) > 2 * self.adversaries and max(wrong.values()) <= self.adversaries


def checked_gradients(name: str, gradients: Tensor, *, load: int) -> Tensor:
    """Return `gradients` if it is (load, d), else raise a ValueError that says what it must be."""
    if gradients.ndim != 2 or gradients.shape[0] != load:
        raise ValueError(
            f"{name}: gradients have shape {tuple(gradients.shape)}, must be ({load}, d), a row a partition"
        )
    return gradients


def checked_replies(name: str, replies: Tensor, workers: int, dtype: torch.dtype) -> None:
    """Raise a ValueError unless `replies` is (workers, d), d >= 1, of the dtype, with contiguous rows."""
    if replies.ndim != 2 or replies.shape[0] != workers or replies.shape[1] < 1:
        raise ValueError(f"{name}: replies have shape {tuple(replies.shape)}, must be ({workers}, d) with d >= 1")
    if replies.dtype != dtype:
        raise ValueError(f"{name}: replies are {replies.dtype}, must be {dtype}")
    if replies.stride(1) != 1 and replies.shape[1] > 1:
        raise ValueError(f"{name}: replies have column stride {replies.stride(1)}, each row must be contiguous")


def arrived_rows(name: str, arrived: npt.NDArray[np.bool_] | None, workers: int) -> npt.NDArray[np.bool_]:
    """Return the mask of rows that arrived, all of them where it is None."""
    if arrived is None:
        return np.ones(workers, dtype=np.bool_)
    mask = np.asarray(arrived, dtype=np.bool_)
    if mask.shape != (workers,):
        raise ValueError(f"{name}: arrived has shape {mask.shape}, must be ({workers},)")
    return mask


class Sizes(NamedTuple):
    """What follows from the numbers and options of a scheme, before it is built."""

    partitions: int  # k
    gradients: int  # m, after decoding
    bad: int = 0  # as in `Scheme`


@dataclass(frozen=True, kw_only=True)
class SchemeDeclaration(Declaration):
    """What a scheme declares. Its function builds the `Scheme`."""

    # (workers, adversaries, **arguments) -> what follows; a ValueError says why there is no such scheme.
    sizes: Callable[..., Sizes]
    least: Callable[[int, Mapping[str, Any]], int] = lambda s, given: 2 * s + 1  # (s, options) -> least n
    tolerance: float = 0.0  # by which honest replies may differ, relatively, unless an option says otherwise
    dtype: str = "float32"  # of a reply
    individual: bool = False  # row i sends the gradient of partition i as it is, and nobody else computes it
    grouped: bool = False  # rows fall into groups of s + 1 equal votes, so that s adversaries are counted in each
    supplied: tuple[str, ...] = ()  # arguments that the trainer knows: "seed" (of drawn designs), "tail"
    project: Callable[[int, int], Tensor] | None = None  # (seed, e) -> (number, e): what its decoder projects on

    def __call__(self, **arguments: Any) -> Scheme:
        """Build the scheme."""
        built: Scheme = self.function(**arguments)
        return built
