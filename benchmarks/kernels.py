"""The times of decoders and aggregators on one thread, against a copy of the same n * d floats and against peers.

A copy reads and writes every float once, 8 n d bytes. A decoder must read them once, 4 n d bytes. So no decoder that
reads each reply once can be faster than 0.5 of a copy.
Shapes: n workers, d elements of a reply.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Call, Row, alternate
from draco.aggregators import AGGREGATORS
from draco.schemes import Scheme, build

COPY = "a copy of n*d floats"


def replies_of(scheme: Scheme, d: int, byzantine: int = 0, *, neighbours: bool = False) -> Tensor:
    """Return honest replies (n, d) of random gradients, with `byzantine` rows reversed and magnified.

    These rows are apart from each other, as a random permutation of rows mostly has them, or neighbours. With
    neighbours the cyclic code is worst conditioned and sums in float64.
    """
    source = torch.Generator().manual_seed(1)
    replies = torch.empty(scheme.workers, d, dtype=scheme.dtype)
    for start in range(0, d, 1 << 20):
        stop = min(start + (1 << 20), d)
        gradients = torch.randn(scheme.assignment.shape[1], stop - start, generator=source)
        for row in range(scheme.workers):
            replies[row, start:stop] = scheme.encode(row, gradients[torch.from_numpy(scheme.assignment[row])])
    rows = range(byzantine) if neighbours else range(0, scheme.workers, -(-scheme.workers // max(byzantine, 1)))
    for row in rows if byzantine else ():
        replies[row] *= -100
    return replies


def main_sizes(quick: bool) -> list[tuple[int, int]]:
    """Return the (n, d) at which the targets are stated."""
    return [(15, 40_000), (45, 10_000)] if quick else [(15, 8_000_000), (45, 1_000_000)]


def rows(quick: bool, repeats: int) -> Iterator[Row]:
    """Yield every kernel figure."""
    for n, d in main_sizes(quick):
        yield from _decoders(n, d, repeats)
        yield from _aggregators(n, d, repeats)
    yield from _encode(5, main_sizes(quick)[0][1], repeats)
    yield from _growth(120_000 if quick else 45_000_000, repeats)
    yield from _peers(15, 20_000 if quick else 1_000_000, max(1, repeats // 3))


def _against_copy(calls: dict[str, tuple[Call, float | None]], n: int, d: int, repeats: int) -> Iterator[Row]:
    source, target = torch.ones(n, d), torch.zeros(n, d)
    timed = alternate({COPY: lambda: target.copy_(source), **{k: call for k, (call, _) in calls.items()}}, repeats)
    size = f"n={n} d={d:,}"
    yield Row("copy", size, timed[COPY], "itself", 1.0, None)
    for name, (_, limit) in calls.items():
        yield Row(name, size, timed[name], COPY, timed[name] / timed[COPY], limit)


def _decoders(n: int, d: int, repeats: int) -> Iterator[Row]:
    s = 2
    repetition, cyclic = build("repetition", workers=n, adversaries=1), build("cyclic", workers=n, adversaries=s)
    equal = replies_of(repetition, d)
    vote: Call = lambda: repetition.decode(equal)  # noqa: E731
    yield from _against_copy({"repetition vote, r=3": (vote, 0.9)}, n, d, repeats)
    clean, spoilt = replies_of(cyclic, d), replies_of(cyclic, d, byzantine=s)
    beside = replies_of(cyclic, d, byzantine=s, neighbours=True)
    calls: dict[str, tuple[Call, float | None]] = {
        f"cyclic decode, s={s}, no error": (lambda: cyclic.decode(clean, seed=1), 0.8),
        f"cyclic decode, s={s}, {s} errors": (lambda: cyclic.decode(spoilt, seed=1), 1.5),
        f"cyclic decode, s={s}, {s} errors side by side": (lambda: cyclic.decode(beside, seed=1), None),
    }
    yield from list(_against_copy(calls, n, d, repeats))[1:]


def _aggregators(n: int, d: int, repeats: int) -> Iterator[Row]:
    gradients = torch.randn(n, d, generator=torch.Generator().manual_seed(2))
    calls: dict[str, tuple[Call, float | None]] = {
        "geometric median": (lambda: AGGREGATORS["geometric_median"](gradients, f=1), 7.0),
        "krum": (lambda: AGGREGATORS["krum"](gradients, f=1), 6.0),
        "median": (lambda: AGGREGATORS["median"](gradients, f=1), None),
        "trimmed mean": (lambda: AGGREGATORS["trimmed_mean"](gradients, f=1), None),
    }
    yield from list(_against_copy(calls, n, d, max(2, repeats // 2)))[1:]


def _encode(r: int, d: int, repeats: int) -> Iterator[Row]:
    scheme = build("cyclic", workers=15, adversaries=(r - 1) // 2)
    gradients = torch.randn(r, d, generator=torch.Generator().manual_seed(3))
    assert scheme.weights is not None
    weights = scheme.weights[0, scheme.assignment[0]].tolist()
    out = torch.zeros(d)

    def axpys() -> None:
        out.zero_()
        for weight, gradient in zip(weights, gradients, strict=True):
            out.add_(gradient, alpha=weight)

    timed = alternate({"axpys": axpys, "encode": lambda: scheme.encode(0, gradients)}, repeats)
    ratio = timed["encode"] / timed["axpys"]
    yield Row("explicit encode", f"r={r} d={d:,}", timed["encode"], f"{r} axpys", ratio, 0.5)


def _growth(floats: int, repeats: int) -> Iterator[Row]:
    """Decode at constant n * d: the cost must not grow with n."""
    sizes = (15, 45, 135, 405)
    calls: dict[str, Call] = {}
    for n in sizes:
        scheme = build("cyclic", workers=n, adversaries=2)
        for errors in (0, 2):
            replies = replies_of(scheme, floats // n, byzantine=errors)
            calls[f"{n} {errors}"] = lambda scheme=scheme, replies=replies: scheme.decode(replies, seed=1)  # type: ignore[misc]
    timed = alternate(calls, repeats)
    for errors in (0, 2):
        base = timed[f"{sizes[0]} {errors}"]
        for n in sizes:
            seconds = timed[f"{n} {errors}"]
            what = f"cyclic decode at constant n*d, {errors} errors"
            yield Row(what, f"n={n} d={floats // n:,}", seconds, f"n={sizes[0]}", seconds / base, 1.3)


def _peers(n: int, d: int, repeats: int) -> Iterator[Row]:
    """Show the paper's complex decoder and the original's geometric median on the same vectors."""
    s = 2
    paper, real = build("cyclic_dft", workers=n, adversaries=s), build("cyclic", workers=n, adversaries=s)
    theirs, ours = replies_of(paper, d, byzantine=s), replies_of(real, d, byzantine=s)
    gradients = torch.randn(n, d, generator=torch.Generator().manual_seed(2))
    array = gradients.numpy()

    def hdmedians() -> object:
        from hdmedians import geomedian

        return np.asarray(geomedian(array, axis=0))

    calls: dict[str, tuple[Call, float | None]] = {
        f"cyclic decode, s={s}, {s} errors": (lambda: real.decode(ours, seed=1), None),
        f"the paper's complex decode, {s} errors": (lambda: paper.decode(theirs, seed=1), None),
        "geometric median": (lambda: AGGREGATORS["geometric_median"](gradients, f=1), None),
        "hdmedians geometric median": (hdmedians, None),
    }
    yield from list(_against_copy(calls, n, d, repeats))[1:]
