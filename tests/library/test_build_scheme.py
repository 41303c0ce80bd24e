"""A scheme from the seat of who calls it: what a row computes, what may be given, and how the rest is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from attacked import gradients_for, honest
from torch import Tensor

import draco
from draco.schemes import CODES, SCHEMES

every = pytest.mark.parametrize("name", CODES)


def built(name: str) -> draco.Scheme:
    return draco.build_scheme(name, workers=12, adversaries=1)


@every
def test_partitions_are_the_rows_of_the_assignment(name: str) -> None:
    scheme = built(name)
    gradients = gradients_for(scheme, 9)
    for row in range(12):
        assert scheme.assignment[row].nonzero()[0].tolist() == [*scheme.partitions(row)]
    replies = [scheme.encode(row, [gradients[place] for place in scheme.partitions(row)]) for row in range(12)]
    assert torch.equal(torch.stack(replies), honest(scheme, gradients))


@every
def test_a_row_that_is_not_there_is_refused(name: str) -> None:
    scheme = built(name)
    for row, words in ((12, "row is 12, must be 0 to 11"), (-1, "row is -1, must be 0 to 11")):
        for call in (scheme.partitions, lambda row: scheme.encode(row, torch.zeros(1, 3))):
            with pytest.raises(ValueError, match=f"^{name}: {words}"):
                call(row)
    with pytest.raises(ValueError, match=f"^{name}: row must be a whole number, got 1.5"):
        scheme.partitions(1.5)  # type: ignore[arg-type]


@every
def test_none_is_a_reply_that_never_came(name: str) -> None:
    scheme = built(name)
    replies: list[Tensor | None] = [*honest(scheme, gradients_for(scheme, 9))]
    arrived = np.ones(12, np.bool_)
    replies[3], arrived[3] = None, False
    expected = outcome(scheme, honest(scheme, gradients_for(scheme, 9)), arrived)
    assert outcome(scheme, replies, None) == expected
    assert outcome(scheme, tuple(replies), [True] * 12) == expected


def outcome(scheme: draco.Scheme, replies: Any, arrived: Any) -> Any:
    """Return what replies decode to, or, from schemes that tolerate no absence, why they do not."""
    try:
        found = scheme.decode(replies, arrived, seed=1)
    except draco.DecodeError as error:
        return str(error)
    return found.gradients.tolist(), found.suspects, found.error


def test_arrived_is_true_or_false_for_each_row() -> None:
    scheme = built("repetition")
    sent = honest(scheme, gradients_for(scheme, 9))
    for arrived in ([True] * 12, [1] * 12, np.ones(12), torch.ones(12, dtype=torch.bool)):
        assert scheme.decode(sent, arrived).suspects == ()
    with pytest.raises(
        ValueError, match=r"repetition: arrived must be True or False for each of the 12 rows, got \[0, 1"
    ):
        scheme.decode(sent, [*range(12)])
    with pytest.raises(ValueError, match=r"repetition: arrived has shape \(2,\), must be \(12,\)"):
        scheme.decode(sent, [True, False])


def test_a_scheme_is_shown_in_one_line() -> None:
    assert repr(built("cyclic")) == "Scheme('cyclic', workers=12, adversaries=1, redundancy=3, partitions=12)"


@every
def test_numbers_and_options_of_another_kind_are_refused(name: str) -> None:
    for what in ("workers", "adversaries"):
        for value in ("9", 9.0, None, True):
            with pytest.raises(ValueError, match=f"^{name}: {what} must be a whole number, got "):
                draco.build_scheme(name, **{"workers": 12, "adversaries": 1, what: value})  # type: ignore[arg-type]
    for option, declared in SCHEMES[name].options.items():
        if declared.argument and not isinstance(declared.default, str) and declared.other_kind("1"):
            with pytest.raises(ValueError, match=f"^{name}: {option} must be a (whole )?number, got '1'"):
                draco.build_scheme(name, workers=12, adversaries=1, **{option: "1"})
    with pytest.raises(ValueError, match=f"^{name}: unknown option colour; its options are: "):
        draco.build_scheme(name, workers=12, adversaries=1, colour=1)


def test_an_unknown_scheme_is_answered_with_all() -> None:
    with pytest.raises(ValueError, match="unknown scheme 'cycli', must be one of uncoded, repetition, cyclic"):
        draco.build_scheme("cycli", workers=9, adversaries=1)
