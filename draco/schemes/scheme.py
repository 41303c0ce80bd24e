"""A scheme as one value: the paper's triple of assignment, encoder and decoder.

Source: Chen, Wang, Charles, Papailiopoulos, DRACO, ICML 2018 (arXiv:1803.09877), section 2: (A, E, D).
A row is a position in the code, not a rank: the server hands out rows from a fresh secret permutation every step.
Shapes: n workers, s adversaries, k partitions, d parameters, m gradients after decoding, load = partitions of one row.
A reply has e = `Scheme.elements(d)` elements, d unless the scheme says otherwise.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from draco.given import as_count, as_tensor
from draco.lazy import Tensor, torch

Mask = npt.NDArray[np.bool_]


class Decoded(NamedTuple):
    """What the server makes of one step's replies.

    Attributes:
        gradients: (m, d) float32, free of adversaries, up to what the scheme promises. Their mean is the step's
            gradient. Where replies were padded, as `solon`'s are, there are more columns, and the first d count.
        suspects: the rows whose reply was not what an honest worker would have sent, increasing.
        error: of an approximate scheme the L2 norm of its error or a bound on it, relative; None: it is exact.
    """

    gradients: Tensor
    suspects: tuple[int, ...]
    error: float | None = None


class Inspection(Protocol):
    """The part of decoding that is done reply by reply, while later replies are still on their way."""

    def add(self, row: int) -> None:
        """Take note of `replies[row]`, which has just arrived and will not change any more."""


# (row, gradients (load, d)) -> (e,): what a row sends for the gradients of its partitions in increasing order.
Encoder = Callable[[int, Tensor], Tensor]
# (replies (n, e), arrived (n,), seed, inspection) -> what they decode to; the arguments have been checked.
Decoder = Callable[[Tensor, Mask, int, Any], Decoded]


def _same(d: int) -> int:
    return d


class Scheme(NamedTuple):
    """One scheme, built for n workers and s adversaries: who computes what, `encode` and `decode`.

    A worker of row i computes the gradients of `partitions(i)`, and sends what `encode` makes of them. The server hands
    the replies to `decode`. A row is a place in the code; hand rows out anew and secretly at each step.

    Attributes:
        name, workers, adversaries: as it was built for; n and s.
        redundancy: the most partitions that one worker computes.
        assignment: (n, k) bool; row i computes partition j of the k that a batch is cut into.
        dtype: the torch.dtype of a reply.
        amplification: worst relative error of the result per relative error of a reply; None: exact.
        summary: one line that says what it is.
        stragglers: rows that the server need not wait for.
        bad: the most of the decoded gradients that s adversaries may make wrong.
    """

    name: str
    workers: int  # n
    adversaries: int  # s
    redundancy: int  # the most partitions that one worker computes
    assignment: Mask  # (n, k): row i computes partition j
    weights: npt.NDArray[np.float64] | None  # (n, k): row i sends sum_j weights[i, j] g_j; None where not real-linear
    encoder: Encoder
    decoder: Decoder
    inspect: Callable[[Tensor, int], Inspection] | None  # (replies (n, e), seed); None: nothing can be done early
    dtype: torch.dtype  # of a reply on the wire before any rounding asked for by the job
    amplification: float | None  # worst relative error of the result per relative error of a reply; None: exact
    summary: str  # one line for the user at the start of a job
    elements: Callable[[int], int] = _same  # d -> e
    exact: bool = True  # with every row there, decoding gives the mean of all partitions but for `bad` ones
    stragglers: int = 0  # rows that the server need not wait for
    bad: int = 0  # the most of the decoded gradients that s adversaries may make wrong, or leave without a majority

    def __repr__(self) -> str:
        """Return what it was built for; the summary says more."""
        words = f"redundancy={self.redundancy}, partitions={self.assignment.shape[1]}"
        return f"Scheme({self.name!r}, workers={self.workers}, adversaries={self.adversaries}, {words})"

    def partitions(self, row: int) -> tuple[int, ...]:
        """Return the partitions that a row computes, increasing.

        Raises:
            ValueError: there is no such row.
        """
        if not 0 <= (place := as_count(self.name, "row", row)) < self.workers:
            raise ValueError(f"{self.name}: row is {row}, must be 0 to {self.workers - 1}")
        return tuple(np.flatnonzero(self.assignment[place]).tolist())

    def encode(self, row: int, gradients: Tensor | npt.NDArray[Any] | Sequence[Any]) -> Tensor:
        """Return what a row sends, (e,), for the gradients (load, d) of its partitions in increasing order.

        Args:
            row: 0 to n - 1.
            gradients: those of `partitions(row)`: a tensor, an array, or a list of tensors, arrays or lists; float32 or
                float64 as a tensor, else taken as float32.

        Raises:
            ValueError: there is no such row, or the gradients have another shape.
        """
        load = len(self.partitions(row))
        given, gradients = gradients, as_tensor(self.name, "gradients", gradients)
        if not gradients.is_floating_point():
            raise ValueError(f"{self.name}: gradients are {gradients.dtype}, must be float32 or float64")
        gradients = gradients if isinstance(given, torch.Tensor) else gradients.float()
        if gradients.ndim != 2 or gradients.shape[0] != load:
            raise ValueError(
                f"{self.name}: gradients have shape {tuple(gradients.shape)}, must be ({load}, d), a row a partition"
            )
        return self.encoder(row, gradients)

    def decode(
        self,
        replies: Tensor | npt.NDArray[Any] | Sequence[Any],
        arrived: Mask | Sequence[bool] | None = None,
        *,
        seed: int | None = None,
        inspection: Any = None,
    ) -> Decoded:
        """Return the gradients that honest workers would have given.

        Args:
            replies: (n, e) by row, a tensor, an array or a list; not changed, though the result may be a view of it.
                In a list None stands for a reply that never came.
            arrived: (n,) bool; rows that are False never came (or were refused) and their content is not read.
            seed: of this step's secret projections; drawn from the operating system where None.
            inspection: what `inspect` began for these replies and `add` was told of every arrived row.

        Raises:
            DecodeError: what arrived cannot be decoded within the scheme's promise.
            ValueError: the shape or the dtype of `replies` or `arrived` is wrong.
        """
        n = self.workers
        here = np.ones(n, np.bool_) if arrived is None else _here(self.name, arrived, n)
        if isinstance(replies, (list, tuple)) and len(replies) == n:
            here, replies = _without_absent(here, replies)
        given, replies = replies, as_tensor(self.name, "replies", replies)
        if not isinstance(given, torch.Tensor) and torch.can_cast(replies.dtype, self.dtype):
            replies = replies.to(self.dtype)
        if replies.ndim != 2 or replies.shape[0] != n or replies.shape[1] < 1:
            raise ValueError(f"{self.name}: replies have shape {tuple(replies.shape)}, must be ({n}, d) with d >= 1")
        if replies.dtype != self.dtype:
            raise ValueError(f"{self.name}: replies are {replies.dtype}, must be {self.dtype}")
        if replies.stride(1) != 1 and replies.shape[1] > 1:
            raise ValueError(
                f"{self.name}: replies have column stride {replies.stride(1)}, each row must be contiguous"
            )
        return self.decoder(replies, here, secrets.randbits(63) if seed is None else seed, inspection)

    def groups(self) -> list[int] | None:
        """Return the group of every row, if rows fall into groups: each computes what no other group computes.

        A group is named by its first partition. None where there are no groups, or where every row is its own group.
        """
        mine = self.assignment.argmax(1)  # the first partition of each row
        theirs = mine[self.assignment.argmax(0)]  # that of the first row that computes a partition
        if len({*mine}) == self.workers or not np.array_equal(self.assignment, mine[:, None] == theirs):
            return None
        return [int(first) for first in mine]

    def tolerates(self, absent: Sequence[int], suspects: Sequence[int], left: int | None = None) -> bool:
        """Say whether what was decoded without the rows `absent` is right, whoever the up to s Byzantine rows are.

        With a rows absent and w suspects among the rest, of rows that share a code:

            absent                        of a scheme that       tolerated where
            up to `stragglers`            may leave them out     always: `Decoded.error` says what they cost
            any                           promises no mean       never
            any                           has `bad` gradients    all m gradients have a majority (`left` is m)
            any                           is an exact code       w + a <= s, within each group by itself

        Example of the last line: s = 2, so distance 2s + 1 = 5. One row is absent, which leaves distance 4. One
        suspect (w + a = 2) is the truth: the s = 2 Byzantine rows would need w + 2 >= 4 to forge it. Two suspects
        (w + a = 3) may be a forgery by the other two. Absent rows are not taken for Byzantine ones; if they were,
        2w + a <= 2s would do.
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

    def spares(self, absent: Sequence[int]) -> bool:
        """Say whether the rest would do without the rows `absent`, if nobody lies; more may be needed where some do."""
        left = None
        if self.bad and absent:
            replicas = self.assignment.sum(0)
            left = int((2 * self.assignment[list(absent)].sum(0) < replicas).sum())
        return self.tolerates(absent, (), left)


def _here(name: str, arrived: Mask | Sequence[bool], n: int) -> Mask:
    """Return who arrived (n,); ValueError where it is no such thing, such as the numbers of rows."""
    given = np.asarray(arrived)
    if given.shape != (n,):
        raise ValueError(f"{name}: arrived has shape {given.shape}, must be ({n},)")
    here = given.astype(np.bool_)
    if not np.array_equal(here, given):
        raise ValueError(f"{name}: arrived must be True or False for each of the {n} rows, got {arrived!r}")
    return here


def _without_absent(here: Mask, replies: Sequence[Any]) -> tuple[Mask, Sequence[Any]]:
    """Return who arrived, and replies of which those that are None are copies of one that did."""
    there = next((reply for reply in replies if reply is not None), None)
    absent = np.array([reply is None for reply in replies])
    if there is None or not absent.any():
        return here, replies
    return here & ~absent, [there if reply is None else reply for reply in replies]
