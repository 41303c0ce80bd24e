"""Aggregators: rules that reduce n gradients to one, most of them robust to f Byzantine rows.

`AGGREGATORS[name](gradients, f=...)` maps (n, d) to (d,) in the dtype (float32; float64 works) and on the device of
`gradients`, which is not changed. Rows may be strided. `AGGREGATORS[name].least(f)` is the least n with which a rule
tolerates f Byzantine rows. A new rule is one file and one line in the table below: a function, and beside it a
declaration (rule.py). `PRE_AGGREGATORS` mix or clip the rows first (mixing.py). `aggregate` applies a list of them and
a rule. No rule needs memory of the size of the gradients. A pre-aggregator makes one new matrix. Where a rule can do
without that matrix, `aggregate` does not make it.

Shapes: n gradients, d parameters, f declared Byzantine rows, m rows that are finite.

What every robust rule (all but `mean`) promises:
- a row with NaN or Inf is certainly Byzantine: it is dropped and f is lowered by one;
- finite rows of any size, 3e38 included, neither make the result non-finite nor spoil the arithmetic of other rows.
What the rules make of finite rows differs. `cge` keeps every short one. `monna` is as good as its trusted row, and
`centered_clipping` as its centre.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from draco.aggregators.bulyan import BULYAN
from draco.aggregators.caf import CAF
from draco.aggregators.centered_clipping import CENTERED_CLIPPING
from draco.aggregators.compose import mix_and_reduce, pre_aggregate
from draco.aggregators.coordinate import MEAMED, MEAN, MEDIAN, SIGN_MAJORITY, TRIMMED_MEAN
from draco.aggregators.geometric_median import GEOMETRIC_MEDIAN
from draco.aggregators.krum import KRUM, MULTI_KRUM
from draco.aggregators.mda import MDA
from draco.aggregators.median_of_means import MEDIAN_OF_MEANS
from draco.aggregators.mixing import ARC, BUCKETING, CLIPPING, NNM
from draco.aggregators.nearest import CGE, MONNA
from draco.aggregators.own_rule import adapt_pre_aggregator, adapt_rule
from draco.aggregators.rule import PreAggregatorDeclaration, RuleDeclaration
from draco.aggregators.smea import SMEA
from draco.declaration import is_known, table
from draco.given import as_tensor
from draco.lazy import Tensor, torch

__all__ = ["AGGREGATORS", "PRE_AGGREGATORS", "PreAggregatorDeclaration", "RuleDeclaration", "aggregate", "per_layer"]

AGGREGATORS: dict[str, RuleDeclaration] = table(
    adapt_rule, MEAN, MEDIAN, TRIMMED_MEAN, MEAMED, SIGN_MAJORITY, MEDIAN_OF_MEANS, GEOMETRIC_MEDIAN, KRUM,
    MULTI_KRUM, BULYAN, MDA, SMEA, CAF, CENTERED_CLIPPING, MONNA, CGE,
)  # fmt: skip
PRE_AGGREGATORS: dict[str, PreAggregatorDeclaration] = table(adapt_pre_aggregator, NNM, BUCKETING, CLIPPING, ARC)


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

    After pre-aggregators that mix, the mixed rows are never made for most rules. A rule of the Gram matrix weights the
    gradients themselves. One that looks at every coordinate by itself mixes block by block. Otherwise the first
    pre-aggregator makes a new matrix, which the others overwrite.

    Args:
        gradients: (n, d): a tensor, an array or a list of rows.
        rule: its name in `AGGREGATORS`, or the path of your own, such as my_rules.py:trimmed_krum.
        f: declared Byzantine rows of the gradients; how it changes on the way is said in mixing.py.
        pre: names in `PRE_AGGREGATORS`, or paths, with their options, first come first.
        generator: what pre-aggregators, and rules of your own, draw from.
        options: the rule's.

    Raises:
        ValueError: an unknown name, no generator to draw from, or what the rules themselves raise.
        OwnCodeError: a path names nothing that can be used, or what it names breaks its promise.
    """
    if not is_known(AGGREGATORS, rule):
        raise ValueError(f"aggregator {rule!r} is not one of {', '.join(AGGREGATORS)}")
    for name, _ in pre:
        if not is_known(PRE_AGGREGATORS, name):
            raise ValueError(f"pre-aggregator {name!r} is not one of {', '.join(PRE_AGGREGATORS)}")
    declared, steps = AGGREGATORS[rule], [(PRE_AGGREGATORS[name], its) for name, its in pre]
    if declared.draws:
        if generator is None:
            raise ValueError(f"{rule}: draws at random and needs a generator")
        options["generator"] = generator
    gradients, f = declared.taken(gradients, f, options)
    for before, given in steps:
        before.taken(gradients, f, given)
    if steps and (result := mix_and_reduce(gradients, declared, f, steps, generator, options)) is not None:
        return result
    for place, step in enumerate(steps):
        gradients, f = pre_aggregate(gradients, step, f, generator, overwrite=place > 0)
    return declared(gradients, f=f, **options)


def per_layer(rule: Callable[..., Tensor], bounds: Sequence[tuple[int, int]]) -> Callable[..., Tensor]:
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
        gradients = as_tensor("per_layer", "gradients", gradients)
        if gradients.dim() != 2 or gradients.shape[1] != stops[-1]:
            raise ValueError(f"per_layer: gradients {tuple(gradients.shape)} do not have {stops[-1]} columns")
        return torch.cat([rule(gradients[:, start:stop], f=f, **options) for start, stop in bounds])

    return layered
