"""What colluders work out from the honest replies, once a step: their mean, their spread, their main axis.

Each is one pass over blocks of columns that stay in the cache, in float64 whatever the replies are. A deviation from
the mean is squared, never a reply: the two-pass algorithm of Chan, Golub & LeVeque, Algorithms for computing the sample
variance: analysis and recommendations, The American Statistician 37(3), 1983.

Shapes: h honest rows, e elements of a reply. Real and imaginary parts of complex replies are coordinates of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

from draco.lazy import Tensor, torch

_BLOCK = 80_000  # elements; as float64 they stay in the second-level cache


def mean_and_spread(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (e,) of the rows (h, e) and their standard deviation (e,) about it, divided by h, not h - 1."""
    flat = _coordinates(rows)
    mean, spread = flat.mean(0), flat.new_empty(flat.shape[1])
    for columns, centred, _ in _centred(flat):
        spread[columns] = centred.mul_(centred).mean(0).sqrt_()
    return _like(mean, rows), _like(spread, rows)


def furthest(rows: Tensor) -> int:
    """Return which of the rows (h, e) reaches furthest, in either sense, along their first principal axis.

    With centred rows C, mean m and the first eigenvector v of C C^T, the axis is C^T v, so row i reaches as far as
    element i of C C^T v + (m^T C^T v). Nothing of length e is made.

    Raises:
        IndexError: there is no row.
    """
    flat = _coordinates(rows)
    gram = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat.device)
    common = gram.new_zeros(len(flat))  # C m
    for _, centred, mean in _centred(flat):
        gram += centred @ centred.T
        common += centred @ mean
    _, vectors = torch.linalg.eigh(gram)
    first = vectors[:, -1]
    return int((gram @ first + common @ first).abs().argmax())


def _centred(flat: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield blocks of columns: which they are, the rows' deviations from the mean (h, block), and the mean (block,)."""
    width = max(_BLOCK // max(len(flat), 1), 1)
    buffer = torch.empty(len(flat), min(width, flat.shape[1]), dtype=torch.float64, device=flat.device)
    for start in range(0, flat.shape[1], width):
        columns = slice(start, min(start + width, flat.shape[1]))
        centred = buffer[:, : columns.stop - start].copy_(flat[:, columns])
        mean = centred.mean(0)
        yield columns, centred.sub_(mean), mean


def _coordinates(rows: Tensor) -> Tensor:
    """Return the rows as real numbers, (h, e) or, where they are complex, (h, 2e)."""
    return torch.view_as_real(rows).flatten(1) if rows.is_complex() else rows


def _like(flat: Tensor, rows: Tensor) -> Tensor:
    """Return real coordinates (e,) or (2e,) as the rows have them, (e,)."""
    return torch.view_as_complex(flat.view(-1, 2)) if rows.is_complex() else flat
