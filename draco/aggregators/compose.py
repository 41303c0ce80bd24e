"""Pre-aggregators one after the other, and rules that take what they mix without its being made.

What `nnm` and `bucketing` make of the rows X is W X with few numbers W. Its inner products are W G W^T, so a rule of
the Gram matrix needs no W X, and its weights w of the mixed rows are the weights w W of the rows. A rule that looks at
every coordinate by itself takes W X block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from draco.aggregators.caf import caf_weighing
from draco.aggregators.coordinate import meamed, mean, median, sign_majority, trimmed_mean
from draco.aggregators.geometric_median import geometric_median_weighing
from draco.aggregators.gram import Matrix, Weighing, finite_gram, precise_gram, weighted_sum
from draco.aggregators.krum import krum_weighing, multi_krum_weighing
from draco.aggregators.mda import mda_weighing
from draco.aggregators.mixing import PRE_AGGREGATORS, Mixing, bucketing_of, nnm_weights
from draco.aggregators.rows import CUDA_WIDTH, blocks, finite_rows, minimum_workers
from draco.aggregators.smea import smea_weighing
from draco.lazy import Tensor, torch

Step = tuple[str, Mapping[str, Any]]  # a pre-aggregator and its options

WEIGHINGS: dict[str, Callable[..., Weighing]] = {
    "geometric_median": geometric_median_weighing,
    "krum": krum_weighing,
    "multi_krum": multi_krum_weighing,
    "mda": mda_weighing,
    "smea": smea_weighing,
    "caf": caf_weighing,
}
COORDINATEWISE: dict[str, Callable[..., Tensor]] = {
    "mean": mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "meamed": meamed,
    "sign_majority": sign_majority,
}
MIXED = 1 << 19  # elements of a block of mixed rows on the CPU


def pre_aggregate(
    gradients: Tensor,
    name: str,
    f: int,
    generator: torch.Generator | None,
    options: Mapping[str, Any],
    overwrite: bool,
) -> tuple[Tensor, int]:
    """Return what a pre-aggregator makes of the gradients (m, d), and how many of these may be Byzantine.

    With `overwrite` that may take the gradients' place in memory.

    Raises:
        ValueError: an unknown name, bucketing without a generator, or what the pre-aggregator itself raises.
    """
    n = len(gradients)
    if name == "bucketing":
        lost = n - len(finite_rows(name, gradients, f, bearable=f))
        drawn = _needed(generator)
        return PRE_AGGREGATORS[name](gradients, f=f, generator=drawn, overwrite=overwrite, **options), f - lost
    if name not in PRE_AGGREGATORS:
        raise ValueError(f"pre-aggregator {name!r} is not one of {', '.join(PRE_AGGREGATORS)}")
    mixed = PRE_AGGREGATORS[name](gradients, f=f, overwrite=overwrite, **options)
    return mixed, f - (n - len(mixed))


def mix_and_reduce(
    gradients: Tensor,
    rule: str,
    f: int,
    pre: Sequence[Step],
    generator: torch.Generator | None,
    options: Mapping[str, Any],
) -> Tensor | None:
    """Return what `rule` makes of mixed rows (d,) without their being made; None where it needs them, or they clip.

    Raises:
        ValueError: as `finite_rows`, or too few mixed rows for the rule.
    """
    if any(name not in ("nnm", "bucketing") for name, _ in pre):
        return None
    if "backend" in options or rule not in {*WEIGHINGS, *COORDINATEWISE}:
        return None
    mixings = [(name, _mixing(len(gradients), name, generator, its)) for name, its in pre]
    if rule in WEIGHINGS or any(name == "nnm" for name, _ in pre):
        rows, gram, precise = finite_gram(pre[0][0], gradients, f, bearable=f)
    else:
        rows = finite_rows(pre[0][0], gradients, f, bearable=f)
        gram, precise = np.eye(len(rows)), True  # nobody looks at it
    f -= len(gradients) - len(rows)
    gradients = gradients.detach()
    weights, certain = _weights(gram, f, precise, mixings, rule, options)
    if not (certain or precise):
        weights, _ = _weights(precise_gram(gradients, rows), f, True, mixings, rule, options)
    if rule in WEIGHINGS:
        return weighted_sum(gradients, rows, weights[0])
    factors, out = torch.from_numpy(weights).to(gradients), gradients.new_empty(gradients.shape[1])
    for columns, block in blocks(gradients, rows, CUDA_WIDTH if gradients.is_cuda else max(MIXED // len(weights), 1)):
        out[columns] = COORDINATEWISE[rule](factors @ block, f=f, **options)
    return out


def _weights(
    gram: Matrix, f: int, precise: bool, mixings: Sequence[tuple[str, Mixing]], rule: str, options: Mapping[str, Any]
) -> tuple[Matrix, bool]:
    """Return the weights of the rows in the mixed rows (m, n), or in the result (1, n), and whether they are certain.

    Mixed rows may be much nearer to each other than the rows are, but then they differ in few of the rows: float32
    products err by no more, relatively, in their distances than in the rows' own.
    """
    mixed, certain = np.eye(len(gram)), True
    for name, mixing in mixings:
        _need(name, f, len(gram))
        weights, sure = mixing(gram, f)
        different, place = np.unique(weights, axis=0, return_inverse=True)  # equal rows are to be equal to the bit
        gram = (different @ gram @ different.T)[np.ix_(place, place)]
        mixed, certain = weights @ mixed, certain and sure
    _need(rule, f, len(gram))
    if rule not in WEIGHINGS:
        return mixed, certain
    weights, sure = WEIGHINGS[rule](len(gram), f, **options)(gram, f, precise)
    return (weights @ mixed)[None], certain and sure


def _mixing(n: int, name: str, generator: torch.Generator | None, options: Mapping[str, Any]) -> Mixing:
    if name == "bucketing":
        return bucketing_of(n, generator=_needed(generator), **options)
    if options:
        raise TypeError(f"nnm takes no options, got {', '.join(options)}")
    return nnm_weights


def _need(name: str, f: int, rows: int) -> None:
    least = minimum_workers(name, f)
    if rows < least:
        raise ValueError(f"{name}: f = {f} needs at least {least} gradients, got {rows}")


def _needed(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        raise ValueError("bucketing: draws a permutation and needs a generator")
    return generator
