"""Attacks of Byzantine workers that know the code: its weak spots, its votes, the secret of its last step.

Shapes: see `scene`; parities as in `schemes.syndrome`, F (q, n) with F Z = 0 for every honest set of replies Z.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
import numpy.typing as npt

from draco.attacks.attack import AttackDeclaration, magnitude
from draco.attacks.scene import Scene, noise, size
from draco.lazy import Tensor, torch
from draco.schemes import Scheme, SchemeDeclaration

Matrix = npt.NDArray[np.float64] | npt.NDArray[np.complex128]


def equivocate(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return -(1 + i) magnitude times the reply of Byzantine worker i = 0, 1, ...: no two of them say the same.

    A worker of a parameter server speaks to nobody else, so it cannot tell two peers different things. What is left of
    equivocation is that Byzantine workers contradict each other: most classes in a vote, errors of most sizes in a
    code. (A second reply to one step is a message that nobody asked for; the transport expels its sender.)
    """
    return reply * -(magnitude * (1 + scene.byzantine.index(scene.row)))


EQUIVOCATE = AttackDeclaration(
    name="equivocate",
    function=equivocate,
    text="another multiple of the reply from every Byzantine worker",
    options=magnitude(1.0, "-magnitude, -2 magnitude, ... times the reply is sent."),
    strength="magnitude",
    informed=True,
)


def rank_one_collusion(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return the reply plus a multiple of one vector, which all Byzantine workers of the step share.

    The factor is the row's. The error matrix has rank one, so that several projections of it say no more than one does.
    Factors are between `magnitude` and twice that, times the size of honest replies.
    """

    def agreed() -> tuple[Tensor, Tensor, float]:
        shared = scene.shared()
        return noise(reply, shared), 1 + torch.rand(scene.scheme.workers, generator=shared), size(scene.honest())

    common, factors, usual = scene.once("agreed", agreed)
    return reply + common * (magnitude * float(factors[scene.row]) * usual)


RANK_ONE_COLLUSION = AttackDeclaration(
    name="rank_one_collusion",
    function=rank_one_collusion,
    text="the reply with a multiple of one shared vector on top",
    options=magnitude(1.0, "Size of the errors, from once to twice so many times the honest replies'."),
    strength="magnitude",
    informed=True,
)


def adjacent(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return the reply plus the row's share of errors that look most like those of neighbouring rows.

    Columns of F of neighbouring rows nearly depend on each other. The errors are multiples of one vector, by the
    factors for which the syndrome is nearest to one that as many rows beside them could have caused. The largest error
    is `magnitude` times as large as honest replies; the smaller, the harder to tell whose it is.
    """

    def agreed() -> tuple[Tensor, float, Matrix]:
        return noise(reply, scene.shared()), size(scene.honest()), confusing(scene.scheme, scene.byzantine)

    drawn, usual, factors = scene.once("agreed", agreed)
    common = drawn * (magnitude * usual)
    factor = complex(factors[scene.byzantine.index(scene.row)])
    return reply + common * (factor if reply.is_complex() else factor.real)


ADJACENT = AttackDeclaration(
    name="adjacent",
    function=adjacent,
    text="the reply with an error that looks most like one of the rows beside it",
    options=magnitude(1.0, "Size of the largest error, as a multiple of the honest replies'."),
    strength="magnitude",
    informed=True,
    placed="neighbours",
)


def orthogonal_to_projection(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return the reply plus noise that is orthogonal to all projections that the decoder drew at the last step.

    A server that drew them once for all could not see it. The noise is `magnitude` times as large as the reply. The
    projections are taken whole, so this needs memory for some ten vectors of doubles.
    """

    def basis() -> Tensor:
        found = scene.projections(reply.numel())
        columns: Tensor = torch.linalg.qr(found.to(found.dtype if found.is_complex() else torch.float64).T)[0]
        return columns

    known = scene.once("basis", basis)
    error = noise(reply, generator).to(known.dtype)
    error -= known @ (known.mH @ error)
    error -= known @ (known.mH @ error)  # once more, for what rounding left
    return reply + (error * (magnitude * size(reply) / size(error))).to(reply.dtype)


def _needs_a_projection(scheme: SchemeDeclaration) -> str | None:
    if scheme.project is not None:
        return None
    return f"orthogonal_to_projection hides from the projections of a decoder; {scheme.name} does not project"


ORTHOGONAL_TO_PROJECTION = AttackDeclaration(
    name="orthogonal_to_projection",
    function=orthogonal_to_projection,
    text="the reply with an error that the last step's secret projections do not see",
    options=magnitude(1.0, "Size of the error, as a multiple of the reply's."),
    strength="magnitude",
    informed=True,
    fault=_needs_a_projection,
)


def split_vote(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return -magnitude times the honest reply of the first Byzantine worker that computes the same, to the bit.

    A vote then sees two camps, the honest and the Byzantine. These win where they are a majority of a group, and can
    block its vote where they are as many as the honest. Unless the job says otherwise they sit so as to win most.
    """
    assignment = scene.scheme.assignment
    first = next(row for row in scene.byzantine if (assignment[row] == assignment[scene.row]).all())
    return (scene.honest()[first] * -magnitude).to(reply.device)


SPLIT_VOTE = AttackDeclaration(
    name="split_vote",
    function=split_vote,
    text="the same false reply, to the bit, from a majority of a group",
    options=magnitude(100.0, "-magnitude times the reply is sent."),
    strength="magnitude",
    informed=True,
    own=False,
    placed="majorities",
)


def whole_group(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return -magnitude times the reply; unless the job says otherwise, Byzantine workers fill whole groups.

    Nobody is left in such a group to contradict. The worst placement against small groups, as raised against DETOX
    (Rajput et al., NeurIPS 2019, arXiv:1907.12205) by Konstantinidis & Ramamoorthy, ByzShield (arXiv:2010.04902).
    """
    return reply * -magnitude


WHOLE_GROUP = AttackDeclaration(
    name="whole_group",
    function=whole_group,
    text="the reply, reversed and magnified, from whole groups",
    options=magnitude(100.0, "-magnitude times the reply is sent."),
    strength="magnitude",
    placed="neighbours",
)


def confusing(scheme: Scheme, byzantine: tuple[int, ...]) -> Matrix:
    """Return the factors of `adjacent`, (f,), the largest 1; all are 1 where a code has too few parities."""
    parity = _parity(scheme)
    n, t = scheme.workers, len(byzantine)
    by_distance = sorted(range(n), key=lambda row: min((row - i) % n for i in byzantine))
    others = list(islice((row for row in by_distance if row not in byzantine), t))
    if len(parity) <= t or not others:
        return np.ones(t)
    mine, triangle = np.linalg.qr(parity[:, list(byzantine)])
    theirs, _ = np.linalg.qr(parity[:, others])
    *_, right = np.linalg.svd(theirs.conj().T @ mine)
    factors: Matrix = np.linalg.solve(triangle, right[0].conj())
    factors /= factors[np.abs(factors).argmax()]
    return factors


def _parity(scheme: Scheme) -> Matrix:
    """Return an orthonormal basis (q, n) of what annihilates the code; q = 0 where replies are not linear in d."""
    n, k = scheme.assignment.shape
    matrix: Matrix | None = scheme.weights
    if matrix is None:
        unit = torch.eye(k)
        rows = [scheme.encode(row, unit[torch.from_numpy(scheme.assignment[row])]) for row in range(n)]
        matrix = torch.stack(rows).numpy() if scheme.dtype.is_complex else np.eye(n)
    left, values, _ = np.linalg.svd(matrix)
    rank = int((values > 1e-9 * values.max()).sum())
    parity: Matrix = left[:, rank:].conj().T
    return parity
