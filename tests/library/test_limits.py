"""Every job is judged within seconds: the sizes of schemes at the ends of what is allowed, and what is beyond."""

import contextlib
import itertools
import time
from typing import Any

import numpy as np
import pytest

from draco.schemes import SCHEMES, build
from draco.schemes.cyclic_code import _inverses, real_code, run_inverses
from draco.schemes.designs import place
from draco.schemes.solon import _strides, amplification, build_code
from draco.schemes.worst_case import WorstCase, worst_case

SECONDS = 4.0  # of CPU: about two on a quiet machine, and more beside other work
EXTREMES: list[tuple[str, int, int, dict[str, Any]]] = [
    ("cyclic", 512, 20, {}),  # none keeps the promise, and a redundancy that would is looked for
    ("cyclic", 512, 1, {}),
    ("cyclic", 65, 32, {}),
    ("solon", 512, 1, {}),
    ("solon", 512, 1, {"parts": 62}),
    ("cyclic_dft", 512, 32, {}),
    ("detox", 4096, 2047, {}),
    ("approximate", 4096, 2047, {}),
    ("placement", 512, 200, {"design": "subset", "redundancy": 511}),
    ("placement", 45, 14, {"redundancy": 5}),
    ("placement", 49, 22, {"design": "ramanujan", "redundancy": 7}),
    ("placement", 320, 20, {"redundancy": 5}),
    ("placement", 448, 150, {"redundancy": 7}),
    ("placement", 4032, 1500, {"redundancy": 63}),
]


@pytest.mark.parametrize(("name", "n", "s", "options"), EXTREMES, ids=str)
def test_the_largest_schemes_are_judged_within_seconds(name: str, n: int, s: int, options: dict[str, Any]) -> None:
    start = time.process_time()
    with contextlib.suppress(ValueError):  # that there is no such scheme is judged too
        SCHEMES[name].sizes(n, s, **options)
    assert time.process_time() - start < SECONDS


@pytest.mark.parametrize("name", ["cyclic", "cyclic_dft", "solon"])
def test_codes_that_would_take_longer_are_refused_with_the_bound(name: str) -> None:
    words = "are more than can be checked: it takes up to 512 workers and redundancy 65, which is 32 adversaries"
    for n, s in ((513, 1), (4096, 2000), (100, 33)):
        with pytest.raises(ValueError, match=f"^{name}: {n} workers with redundancy .* {words}"):
            build(name, workers=n, adversaries=s)


def test_drawn_codes_are_bounded_as_their_weights_are_solved_for() -> None:
    for code in ("bernoulli", "stochastic_block"):
        with pytest.raises(ValueError, match="code must be fractional for more than 1024 workers"):
            build("approximate", workers=1025, adversaries=0, code=code)


@pytest.mark.parametrize(("n", "p", "t"), [(9, 4, 2), (10, 4, 2), (10, 5, 3), (16, 6, 3)])
def test_the_inverses_of_runs_are_those_of_the_first_turned(n: int, p: int, t: int) -> None:
    parity = real_code(n, p).parity
    runs = (np.arange(n)[:, None] + np.arange(t)) % n
    np.testing.assert_allclose(run_inverses(parity, t), _inverses(parity, runs), atol=1e-9)


@pytest.mark.parametrize(("n", "p", "c"), [(9, 2, 2), (12, 4, 2), (12, 3, 3), (15, 2, 4)])
def test_the_strides_that_are_looked_at_hold_the_best(n: int, p: int, c: int) -> None:
    codes = {stride: code for stride in range(1, n // 2 + 1) if (code := build_code(n, p, c, stride)) is not None}
    first = tuple(range(p // 2))
    best = min(codes, key=lambda stride: amplification(codes[stride], first))
    assert best in _strides(n, p, c)


def test_the_worst_case_of_ten_among_25_workers_is_settled_and_borne() -> None:
    assert worst_case(place("ramanujan", 25, 5), 10, net=True) == WorstCase(12, True)
    assert build("placement", workers=25, adversaries=10, design="ramanujan", redundancy=5).bad == 12


def test_no_set_of_some_size_loses_more_than_said() -> None:
    """All sets of 6 among 25 workers, of which two of different classes may be the first of theirs."""
    assignment = place("ramanujan", 25, 5)
    rows = np.array([(0, 5, *rest) for rest in itertools.combinations([i for i in range(25) if i not in (0, 5)], 4)])
    counts = assignment[rows].sum(1)
    assert worst_case(assignment, 6, net=True) == WorstCase(int((counts >= 3).sum(1).max()), True)


def test_a_bound_is_said_to_be_one() -> None:
    worst = worst_case(place("mols", 35, 5), 14, net=True)
    assert not worst.exact
    with pytest.raises(
        ValueError, match=r"14 adversaries may win or spoil at most 2[0-9] partitions, .* it tolerates 1"
    ):
        build("placement", workers=35, adversaries=14, redundancy=5)
