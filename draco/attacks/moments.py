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
    for columns, block in _centred(flat):
        centred = block[:-1]
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
    products = torch.zeros(len(flat), len(flat) + 1, dtype=torch.float64, device=flat.device)
    for _, block in _centred(flat):
        products += block[:-1] @ block.T
    gram, common = products[:, :-1], products[:, -1]  # C C^T, C m
    _, vectors = torch.linalg.eigh(gram)
    first = vectors[:, -1]
    return int((gram @ first + common @ first).abs().argmax())


def _centred(flat: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of columns: which they are, and the rows' deviations from the mean, and last the mean itself."""
    width = max(_BLOCK // max(len(flat), 1), 1)
    buffer = torch.empty(len(flat) + 1, min(width, flat.shape[1]), dtype=torch.float64, device=flat.device)
    for start in range(0, flat.shape[1], width):
        columns = slice(start, min(start + width, flat.shape[1]))
        block = buffer[:, : columns.stop - start]
        centred, mean = block[:-1].copy_(flat[:, columns]), block[-1]
        torch.mean(centred, 0, out=mean)
        centred.sub_(mean)
        yield columns, block


def _coordinates(rows: Tensor) -> Tensor:
    """Return the rows as real numbers, (h, e) or, where they are complex, (h, 2e)."""
    return torch.view_as_real(rows).flatten(1) if rows.is_complex() else rows


def _like(flat: Tensor, rows: Tensor) -> Tensor:
    """Return real coordinates (e,) or (2e,) as the rows have them, (e,)."""
    return torch.view_as_complex(flat.view(-1, 2)) if rows.is_complex() else flat
