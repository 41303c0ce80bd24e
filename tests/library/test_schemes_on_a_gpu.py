"""Every scheme decodes on a GPU what it decodes on the CPU, wherever the Byzantine and the absent rows are."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from attacked import gradients_for, honest

from draco.schemes import CODES, Decoded, DecodeError, Scheme, build

D = 300
SIZES = {"detox": (9, 2), "placement": (12, 2), "solon": (9, 1), "approximate": (8, 1), "cyclic": (7, 2)}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "repetition": [{}, {"vote": "tolerance"}],
    "placement": [{}, {"vote": "tolerance"}],
    "detox": [{}, {"vote": "tolerance"}],
    "approximate": [{}, {"code": "bernoulli"}, {"vote": "tolerance"}],
}
BUILT = {
    f"{name}-{'-'.join(map(str, given.values()))}": build(
        name, workers=n, adversaries=0 if "code" in given else s, **given
    )
    for name in CODES
    for n, s in [SIZES.get(name, (9, 1))]
    for given in OPTIONS.get(name, [{}])
}


def placements(scheme: Scheme, count: int) -> list[tuple[int, ...]]:
    """Return all sets of `count` rows, or an even choice of them."""
    every = list(itertools.combinations(range(scheme.workers), count))
    return every[:: max(len(every) // 5, 1)]


def decoded(scheme: Scheme, replies: torch.Tensor, absent: Sequence[int], *, early: bool) -> Decoded | str:
    """Return what a scheme decodes, its rows inspected as they come with `early`, or why it decodes nothing."""
    here = np.ones(scheme.workers, np.bool_)
    here[list(absent)] = False
    inspection = scheme.inspect(replies, 7) if early and scheme.inspect else None
    if inspection is not None:
        for row in np.flatnonzero(here):
            inspection.add(int(row))
    try:
        return scheme.decode(replies, here, seed=7, inspection=inspection)
    except DecodeError as error:
        return str(error)


@pytest.mark.parametrize("scheme", BUILT.values(), ids=BUILT)
def test_a_gpu_decodes_what_the_cpu_decodes(gpu: torch.device, scheme: Scheme) -> None:
    sent = honest(scheme, gradients_for(scheme, D))
    for count, lie in itertools.product({0, scheme.adversaries}, ("-100 times", "barely", "not finite", "absent")):
        for rows in placements(scheme, count):
            replies, absent = sent.clone(), rows if lie == "absent" else ()
            factor = {"-100 times": -100, "barely": 1.01, "not finite": float("nan"), "absent": float("nan")}[lie]
            for row in rows:
                replies[row] = 255 - replies[row] if scheme.dtype == torch.uint8 else replies[row] * factor
            there = replies.to(gpu)
            for early in (False, True) if scheme.inspect else (False,):
                ours, theirs = (decoded(scheme, each, absent, early=early) for each in (replies, there))
                if isinstance(ours, str):
                    assert theirs == ours
                    continue
                assert isinstance(theirs, Decoded), theirs
                assert (theirs.suspects, theirs.error) == (ours.suspects, ours.error), (rows, lie, early)
                assert theirs.gradients.device.type == gpu.type
                rtol, atol = (1e-5, 1e-6) if gpu.type == "cuda" else (0, 0)
                torch.testing.assert_close(theirs.gradients.cpu(), ours.gradients, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize("scheme", BUILT.values(), ids=BUILT)
def test_a_gpu_encodes_what_the_cpu_encodes(gpu: torch.device, scheme: Scheme) -> None:
    gradients = gradients_for(scheme, D)
    for row in range(scheme.workers):
        own = gradients[scheme.assignment[row]]
        theirs = scheme.encode(row, own.to(gpu))
        assert theirs.device.type == gpu.type
        here, there = scheme.encode(row, own), theirs.cpu()
        if scheme.dtype == torch.uint8:  # the loss, and then signs
            assert torch.equal(there[4:], here[4:])
            here, there = here[:4].view(torch.float32), there[:4].view(torch.float32)
        torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)
