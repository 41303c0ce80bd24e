"""Attacks of liars who know the code: where it is weak, what its votes need, and what its last step's secret was.

Shapes: see `scene`; parities as in `schemes.syndrome`, F (q, n) with F Z = 0 for every honest set of replies Z.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

import numpy as np
import numpy.typing as npt

from draco.attacks.scene import Scene, noise, size
from draco.lazy import Tensor, torch
from draco.schemes import Scheme
from draco.schemes.cyclic_dft import projection
from draco.schemes.projection import dense, draw

Matrix = npt.NDArray[np.float64] | npt.NDArray[np.complex128]

# The projections (number, e) that a scheme's decoder draws from a step's seed.
PROJECTIONS: Mapping[str, Callable[[int, int], Tensor]] = {
    "cyclic": lambda seed, elements: dense(draw(seed, elements, torch.device("cpu")), elements),
    "cyclic_dft": lambda seed, elements: projection(seed, elements)[None],
}


def equivocate(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return -(1 + i) magnitude times the reply, where it is liar i = 0, 1, ...: no two liars say the same.

    A worker of a parameter server speaks to nobody else, so it cannot tell two peers different things. What is left of
    equivocation is that liars contradict each other: most classes in a vote, errors of most sizes in a code. (A second
    reply to one step is a message that nobody asked for; the transport expels its sender.)
    """
    return reply * -(magnitude * (1 + scene.liars.index(scene.row)))


def rank_one_collusion(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return the reply plus a multiple of one vector that all liars of the step share; the factor is the row's.

    The error matrix of all liars has rank one, so that several projections of it say no more than one does. Factors
    are between `magnitude` and twice that, times the size of honest replies.
    """
    shared = scene.shared()
    common = noise(reply, shared)
    factors = 1 + torch.rand(scene.scheme.workers, generator=shared)
    return reply + common * (magnitude * float(factors[scene.row]) * size(scene.honest()))


def adjacent(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return the reply plus the row's share of errors that look most like those of neighbouring rows.

    Columns of F of neighbouring rows nearly depend on each other. The liars' errors are multiples of one vector, by the
    factors for which the syndrome is nearest to one that as many rows beside them could have caused. The largest error
    is `magnitude` times as large as honest replies; the smaller, the harder to tell whose it is.
    """
    factors = torch.from_numpy(confusing(scene.scheme, scene.liars))
    factor = complex(factors[scene.liars.index(scene.row)])
    common = noise(reply, scene.shared()) * (magnitude * size(scene.honest()))
    return reply + common * (factor if reply.is_complex() else factor.real)


def orthogonal_to_projection(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return the reply plus noise that is orthogonal to all projections that the decoder drew at the last step.

    A server that drew them once for all could not see it. The noise is `magnitude` times as large as the reply. The
    projections are taken whole, so this needs memory for some ten vectors of doubles.
    """
    found = PROJECTIONS[scene.scheme.name](scene.past_seed, reply.numel())
    known, _ = torch.linalg.qr(found.to(found.dtype if found.is_complex() else torch.float64).T)
    error = noise(reply, generator).to(known.dtype)
    error -= known @ (known.mH @ error)
    error -= known @ (known.mH @ error)  # once more, for what rounding left
    return reply + (error * (magnitude * size(reply) / size(error))).to(reply.dtype)


def split_vote(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return -magnitude times the honest reply of the first liar that computes the same: one lie, to the bit.

    A vote then sees two camps, the honest and the liars. The liars win where they are a majority of a group, and can
    block its vote where they are as many as the honest; unless the job says otherwise they sit so as to win most.
    """
    assignment = scene.scheme.assignment
    first = next(row for row in scene.liars if (assignment[row] == assignment[scene.row]).all())
    return (scene.honest()[first] * -magnitude).to(reply.device)


def whole_group(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return -magnitude times the reply; unless the job says otherwise, liars fill whole groups.

    Nobody is left in such a group to contradict. The worst placement against small groups, as raised against DETOX
    (Rajput et al., NeurIPS 2019, arXiv:1907.12205) by Konstantinidis & Ramamoorthy, ByzShield (arXiv:2010.04902).
    """
    return reply * -magnitude


def confusing(scheme: Scheme, liars: tuple[int, ...]) -> Matrix:
    """Return one factor per liar, (f,), the largest 1: those of `adjacent`; all 1 where a code has too few parities."""
    parity = _parity(scheme)
    n, t = scheme.workers, len(liars)
    by_distance = sorted(range(n), key=lambda row: min((row - i) % n for i in liars))
    others = list(islice((row for row in by_distance if row not in liars), t))
    if len(parity) <= t or not others:
        return np.ones(t)
    mine, triangle = np.linalg.qr(parity[:, list(liars)])
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
