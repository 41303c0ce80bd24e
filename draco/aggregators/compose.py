"""Pre-aggregators one after the other, and rules on mixed rows that are never made.

What a mixing makes of the rows X is W X with few numbers W. Its inner products are W G W^T, so a rule of the Gram
matrix needs no W X, and its weights w of the mixed rows are the weights w W of the rows. A rule that looks at every
coordinate by itself takes W X block by block.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from draco.aggregators import mixing
from draco.aggregators.gram import decide, weighted_sum
from draco.aggregators.rows import CUDA_WIDTH, blocks, check_count, finite_rows
from draco.aggregators.rule import Matrix, Mixing, PreAggregatorDeclaration, RuleDeclaration
from draco.lazy import Tensor, torch

Step = tuple[PreAggregatorDeclaration, Mapping[str, Any]]  # a pre-aggregator and its options
MIXED = 1 << 19  # elements of a block of mixed rows on the CPU


def pre_aggregate(
    gradients: Tensor,
    step: Step,
    f: int,
    generator: torch.Generator | None,
    overwrite: bool,
) -> tuple[Tensor, int]:
    """Return what a pre-aggregator makes of the gradients (m, d), and how many of these may be Byzantine.

    With `overwrite` that may take the gradients' place in memory.

    Raises:
        ValueError: there is no generator to draw from, or what the pre-aggregator itself raises.
    """
    pre, options = step
    n, lost = len(gradients), None
    pre.check_options(n, f, **options)
    if pre.remaining(n, options) != n:  # the number of rows that come out does not say how many were dropped
        lost = n - len(finite_rows(pre, gradients, f, tolerated=f))
    drawn = {"generator": _needed(pre, generator)} if pre.draws else {}
    mixed = pre(gradients, f=f, overwrite=overwrite, **drawn, **options)
    return mixed, f - (n - len(mixed) if lost is None else lost)


def mix_and_reduce(
    gradients: Tensor,
    rule: RuleDeclaration,
    f: int,
    pre: Sequence[Step],
    generator: torch.Generator | None,
    options: Mapping[str, Any],
) -> Tensor | None:
    """Return what `rule` makes of mixed rows (d,) without their being made; None where it needs them, or they clip.

    Raises:
        ValueError: as `finite_rows`, or too few mixed rows for the rule.
    """
    if not fuses(rule, [step for step, _ in pre], options):
        return None
    weighs = _weighs(rule, options)
    mixings = [(step, _mixing(len(gradients), step, generator, its)) for step, its in pre]
    first = pre[0][0]
    if weighs or any(step.compares for step, _ in pre):
        decision = partial(_weights, mixings=mixings, rule=rule, options=options)
        rows, f, weights = decide(first, gradients, f, decision, tolerated=f)
    else:  # nobody looks at the products
        rows = finite_rows(first, gradients, f, tolerated=f)
        f -= len(gradients) - len(rows)
        weights, _ = _weights(np.eye(len(rows)), f, True, mixings, rule, options)
    gradients = gradients.detach()
    if weighs:
        return weighted_sum(gradients, rows, weights[0])
    factors, out = torch.from_numpy(weights).to(gradients), gradients.new_empty(gradients.shape[1])
    for columns, block in blocks(gradients, rows, max(MIXED // len(weights), 1) if gradients.is_cpu else CUDA_WIDTH):
        made = factors @ block if gradients.is_cpu else mixing.mixed(block, list(range(len(block))), weights)
        out[columns] = rule(made, f=f, **options)
    return out


def fuses(rule: RuleDeclaration, pre: Sequence[PreAggregatorDeclaration], options: Collection[str]) -> bool:
    """Say whether mixed rows need not be made for a rule with these options: `mix_and_reduce` does without."""
    return all(step.mixing is not None for step in pre) and (_weighs(rule, options) or rule.by_coordinate)


def _weighs(rule: RuleDeclaration, options: Collection[str]) -> bool:
    return rule.weighing is not None and set(options) <= set(inspect.signature(rule.weighing).parameters)


def _weights(
    gram: Matrix,
    f: int,
    precise: bool,
    mixings: Sequence[tuple[PreAggregatorDeclaration, Mixing]],
    rule: RuleDeclaration,
    options: Mapping[str, Any],
) -> tuple[Matrix, bool]:
    """Return the weights of the rows in the mixed rows (m, n), or in the result (1, n), and whether they are certain.

    Mixed rows may be much nearer to each other than the rows are, but then they differ in few of the rows: float32
    products err by no more, relatively, in their distances than in the rows' own.
    """
    mixed, certain = np.eye(len(gram)), True
    for step, mix in mixings:
        check_count(step, len(gram), f)
        weights, sure = mix(gram, f)
        different, place = np.unique(weights, axis=0, return_inverse=True)  # equal rows are to be equal to the bit
        gram = (different @ gram @ different.T)[np.ix_(place, place)]
        mixed, certain = weights @ mixed, certain and sure
    check_count(rule, len(gram), f)
    if rule.weighing is None:
        return mixed, certain
    weights, sure = rule.weighing(len(gram), f, **options)(gram, f, precise)
    return (weights @ mixed)[None], certain and sure


def _mixing(
    n: int, step: PreAggregatorDeclaration, generator: torch.Generator | None, options: Mapping[str, Any]
) -> Mixing:
    assert step.mixing is not None
    made: Mixing = step.mixing(n, _needed(step, generator) if step.draws else None, **options)
    return made


def _needed(step: PreAggregatorDeclaration, generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        raise ValueError(f"{step.name}: draws at random and needs a generator")
    return generator
