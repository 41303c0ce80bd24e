"""Median of means: the geometric median of averaged groups of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from draco.aggregators.geometric_median import geometric_median
from draco.aggregators.gram import weighted_sum
from draco.aggregators.rows import finite_rows
from draco.aggregators.rule import Faults, RuleDeclaration, majority
from draco.declaration import Option
from draco.lazy import Tensor


def median_of_means(gradients: Tensor, *, f: int = 0, groups: int | None = None) -> Tensor:
    """Return the geometric median of the means of groups of neighbouring rows, (n, d) -> (d,).

    Source: Chen, Su, Xu, Distributed Statistical Machine Learning in Adversarial Settings, POMACS 2017
    (arXiv:1705.05491), algorithm 2: each group's mean, then their geometric median over the whole vector. The paper's
    groups are equally large; here sizes differ by one at most. f Byzantine rows spoil at most f groups, so that
    `groups` >= 2f + 1 leaves more than half of them honest. Which rows share a group depends on the rows' order.

    Memory: the means, `groups` / n of the gradients, unless every row is a group of its own.

    Args:
        gradients: (n, d).
        f: declared Byzantine rows.
        groups: number of groups, 2f + 1 by default: the fewest, which average most.

    Raises:
        ValueError: n < 2f + 1, `groups` is not from 2f + 1 to n, or more than f rows hold NaN or Inf.
    """
    rows = finite_rows(MEDIAN_OF_MEANS, gradients, f, tolerated=f)
    n, lost = len(gradients), len(gradients) - len(rows)
    MEDIAN_OF_MEANS.check_options(n, f, groups=groups)
    count = 2 * (f - lost) + 1 if groups is None else min(groups, len(rows))
    if count == n:
        return geometric_median(gradients, f=f)
    means = gradients.new_empty(count, gradients.shape[1])
    for mean_of_group, group in zip(means, np.array_split(rows, count), strict=True):
        mean_of_group.copy_(weighted_sum(gradients.detach(), group.tolist(), np.full(len(group), 1 / len(group))))
    return geometric_median(means, f=f - lost)


def _faults(n: int, f: int, given: Mapping[str, Any]) -> Faults:
    groups = given.get("groups")
    if groups is not None and not 2 * f + 1 <= groups <= n:
        yield "groups", f"must be from 2f + 1 = {2 * f + 1} to m = {n} gradients, got {groups}"


MEDIAN_OF_MEANS = RuleDeclaration(
    name="median_of_means",
    function=median_of_means,
    text="the geometric median of the means of groups of neighbouring rows",
    options={
        "groups": Option(int | None, None, "Groups of gradients, from 2f+1 to m; null: 2f+1.", ge=1, le=4096),
    },
    least=majority,
    faults=_faults,
    whole_rows=True,
    makes=lambda f, given: given.get("groups") or 2 * f + 1,
)
