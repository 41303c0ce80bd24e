"""Aggregators: rules that reduce n gradients to one, most of them robust to f Byzantine rows.

`AGGREGATORS[name](gradients, f=...)` maps (n, d) to (d,) in the dtype (float32; float64 works) and on the device of
`gradients`, which is not changed. Rows may be strided. `MINIMUM_WORKERS[name](f)` is the least n that a rule bears.
A new rule is one function, one line in the table below and one in `rows.MINIMUM_WORKERS`. `PRE_AGGREGATORS` mix or clip
the rows first (see mixing.py); `aggregate` applies a list of them and a rule. No rule needs memory of the size of the
gradients; a pre-aggregator makes one new matrix, and where a rule can do without it, `aggregate` does not.

Shapes: n gradients, d parameters, f declared Byzantine rows, m rows that are finite.

What every robust rule (all but `mean`) promises:
- a row with NaN or Inf is certainly Byzantine: it is dropped and f is lowered by one;
- finite rows of any size, 3e38 included, neither make the result non-finite nor spoil the arithmetic of other rows.
What the rules make of finite rows differs: `cge` keeps every short one, `monna` is as good as its trusted row and
`centered_clipping` as its centre.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from draco.aggregators.bulyan import bulyan
from draco.aggregators.caf import caf
from draco.aggregators.centered_clipping import centered_clipping
from draco.aggregators.compose import mix_and_reduce, pre_aggregate
from draco.aggregators.coordinate import meamed, mean, median, sign_majority, trimmed_mean
from draco.aggregators.geometric_median import geometric_median
from draco.aggregators.krum import krum, multi_krum
from draco.aggregators.mda import mda
from draco.aggregators.median_of_means import median_of_means
from draco.aggregators.mixing import PRE_AGGREGATORS, PreAggregator, remaining
from draco.aggregators.nearest import cge, monna
from draco.aggregators.rows import MINIMUM_WORKERS, PRE_MINIMUM_WORKERS, minimum_workers
from draco.aggregators.smea import smea
from draco.lazy import Tensor, torch

__all__ = [
    "AGGREGATORS", "MINIMUM_WORKERS", "PRE_AGGREGATORS", "PRE_MINIMUM_WORKERS", "Aggregator", "PreAggregator",
    "aggregate", "minimum_workers", "per_layer", "remaining",
]  # fmt: skip

Aggregator = Callable[..., Tensor]  # (gradients (n, d), *, f: int = 0, ...) -> (d,)

AGGREGATORS: dict[str, Aggregator] = {
    "mean": mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "meamed": meamed,
    "sign_majority": sign_majority,
    "median_of_means": median_of_means,
    "geometric_median": geometric_median,
    "krum": krum,
    "multi_krum": multi_krum,
    "bulyan": bulyan,
    "mda": mda,
    "smea": smea,
    "caf": caf,
    "centered_clipping": centered_clipping,
    "monna": monna,
    "cge": cge,
}


def aggregate(
    gradients: Tensor,
    rule: str,
    *,
    f: int = 0,
    pre: Sequence[tuple[str, Mapping[str, Any]]] = (),
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """Return what `rule` makes of the gradients after the pre-aggregators, (n, d) -> (d,).

    After `nnm` and `bucketing` a rule of the Gram matrix weights the gradients themselves, and one that looks at every
    coordinate by itself mixes block by block: the mixed rows are never made. Otherwise the first pre-aggregator makes a
    new matrix, which the others overwrite.

    Args:
        gradients: (n, d).
        rule: its name in `AGGREGATORS`.
        f: declared Byzantine rows of the gradients; how it changes on the way is said in mixing.py.
        pre: names in `PRE_AGGREGATORS` with their options, first come first.
        generator: what bucketing draws from.
        options: the rule's.

    Raises:
        ValueError: an unknown name, bucketing without a generator, or what the rules themselves raise.
    """
    if rule not in AGGREGATORS:
        raise ValueError(f"aggregator {rule!r} is not one of {', '.join(AGGREGATORS)}")
    if pre and (result := mix_and_reduce(gradients, rule, f, pre, generator, options)) is not None:
        return result
    for place, (name, its) in enumerate(pre):
        gradients, f = pre_aggregate(gradients, name, f, generator, its, overwrite=place > 0)
    return AGGREGATORS[rule](gradients, f=f, **options)


def per_layer(rule: Aggregator, bounds: Sequence[tuple[int, int]]) -> Aggregator:
    """Return a rule that applies `rule` to the columns [start, stop) of every layer on its own.

    The original Draco did so. The bound on Byzantine rows then holds layer by layer, but the result may mix layers of
    different rows.

    Raises:
        ValueError: the bounds are empty, out of order or leave a gap; or, when called, do not end at d.
    """
    starts, stops = [start for start, _ in bounds], [stop for _, stop in bounds]
    if not bounds or starts != [0, *stops[:-1]] or any(start >= stop for start, stop in bounds):
        raise ValueError(f"per_layer: the bounds {list(bounds)} are not contiguous non-empty slices from column 0")

    def layered(gradients: Tensor, *, f: int = 0, **options: Any) -> Tensor:
        if gradients.dim() != 2 or gradients.shape[1] != stops[-1]:
            raise ValueError(f"per_layer: gradients {tuple(gradients.shape)} do not have {stops[-1]} columns")
        return torch.cat([rule(gradients[:, start:stop], f=f, **options) for start, stop in bounds])

    return layered
