"""Designs, and what the worst placed Byzantine workers spoil in them: against tables and every set of workers."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draco.schemes import worst_case as module
from draco.schemes.agreement import certainly_byzantine
from draco.schemes.designs import DESIGNS, exists, field, latin_squares, partitions, place, prime_power
from draco.schemes.worst_case import WorstCase, worst_case

PRESENT = [("mols", 12, 3), ("mols", 35, 5), ("ramanujan", 9, 3), ("ramanujan", 15, 3), ("subset", 6, 3)]


@pytest.mark.parametrize("q", [2, 3, 4, 5, 7, 8, 9])
def test_fields_have_the_laws_of_a_field(q: int) -> None:
    add, multiply = field(q)
    a, b, c = np.ogrid[:q, :q, :q]
    for table in (add, multiply):
        assert (table == table.T).all()
        assert (table[table[a, b], c] == table[a, table[b, c]]).all()
    assert (multiply[a, add[b, c]] == add[multiply[a, b], multiply[a, c]]).all()
    assert (np.sort(add, axis=1) == np.arange(q)).all()
    assert (np.sort(multiply[1:], axis=1) == np.arange(q)).all()  # so every element but 0 has an inverse


def test_prime_powers_are_the_powers_of_numbers_without_divisors() -> None:
    primes = [p for p in range(2, 130) if all(p % d for d in range(2, p))]
    powers = {p**e: (p, e) for p in primes for e in range(1, 8) if p**e < 130}
    assert {q: prime_power(q) for q in range(130)} == {q: powers.get(q) for q in range(130)}


@pytest.mark.parametrize("order", [3, 4, 5, 8, 9])
def test_latin_squares_are_latin_and_pairs_of_symbols_occur_once(order: int) -> None:
    squares = latin_squares(order)
    assert len(squares) == order - 1
    symbols = set(range(order))
    for square in squares:
        assert all(set(line.tolist()) == symbols for line in (*square, *square.T))
    for one, other in itertools.combinations(squares, 2):
        cells = itertools.product(range(order), range(order))
        assert len({(int(one[i, j]), int(other[i, j])) for i, j in cells}) == order**2


def test_the_cells_of_a_worker_hold_its_symbol() -> None:
    assignment, squares = place("mols", 12, 3), latin_squares(4)
    for t, symbol, i, j in itertools.product(range(3), range(4), range(4), range(4)):
        assert assignment[4 * t + symbol, 4 * i + j] == (squares[t, i, j] == symbol)


@pytest.mark.parametrize(("n", "r"), [(9, 3), (15, 3), (21, 3), (25, 5)])
def test_ramanujan_arrays_are_made_of_powers_of_the_shift_and_have_the_second_singular_value(n: int, r: int) -> None:
    q = n // r
    shift = np.roll(np.eye(q, dtype=int), 1, axis=1)  # 1 at (i, i + 1)
    array = np.block([[np.linalg.matrix_power(shift, i * j) for j in range(r)] for i in range(q)])
    assignment = place("ramanujan", n, r)
    assert (assignment == (array if n == r * r else array.T)).all()
    values = np.linalg.svd(assignment.astype(float), compute_uv=False)
    load = int(assignment[0].sum())
    assert values[1] <= math.sqrt(load - 1) + math.sqrt(r - 1) + 1e-9


@pytest.mark.parametrize(("design", "n", "r"), PRESENT)
def test_every_partition_is_on_r_workers_and_every_worker_has_as_many(design: str, n: int, r: int) -> None:
    assignment = place(design, n, r)
    k = partitions(design, n, r)
    assert assignment.shape == (n, k)
    assert (assignment.sum(0) == r).all()
    assert (assignment.sum(1) == k * r // n).all()
    if design != "subset":
        shared = assignment.astype(int) @ assignment.T.astype(int)
        classes = np.arange(n) // (n // r)
        assert (shared == np.where(classes[:, None] == classes, 0, 1))[~np.eye(n, dtype=bool)].all()


@pytest.mark.parametrize(
    ("design", "n", "r", "message"),
    [
        ("mols", 14, 3, r"none for 14 workers and redundancy 3. Nearest for redundancy 3: 12, 15, 21 workers"),
        ("mols", 9, 3, r"for 9 workers: redundancy \(none\)"),
        ("ramanujan", 24, 5, r"Nearest for redundancy 5: 25, 35, 55 workers"),
        ("subset", 40, 5, r"4096 partitions; .*for 40 workers: redundancy 39"),
        ("subset", 5, 7, r"for 5 workers: redundancy 3, 5"),
        ("mols", 20, 4, "redundancy must be odd and 3 or more"),
        ("fano", 7, 3, "design must be one of mols, ramanujan, subset, got 'fano'"),
    ],
)
def test_refusals_name_the_nearest_that_exist(design: str, n: int, r: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place(design, n, r)


def test_all_that_is_said_to_exist_can_be_placed() -> None:
    for design, n, r in itertools.product(DESIGNS, range(3, 31), (3, 5)):
        if exists(design, n, r):
            assert place(design, n, r).shape == (n, partitions(design, n, r))


# --- The worst placed Byzantine workers ------------------------------------------------------------------------------


def tried(assignment: np.ndarray, q: int) -> int:
    """Return the most lost partitions of all sets of q rows, by going through them."""
    sizes = assignment.sum(0)
    sets = itertools.combinations(range(len(assignment)), q)
    return max(int((2 * assignment[list(rows)].sum(0) >= sizes).sum()) for rows in sets)


@pytest.mark.parametrize(
    ("design", "n", "r", "most"), [("mols", 12, 3, 6), ("ramanujan", 9, 3, 9), ("mols", 15, 3, 4), ("subset", 7, 5, 7)]
)
def test_the_worst_case_is_that_of_all_sets(design: str, n: int, r: int, most: int) -> None:
    assignment = place(design, n, r)
    for q in range(most + 1):
        expected = WorstCase(tried(assignment, q), True)
        assert worst_case(assignment, q) == expected
        assert worst_case(assignment, q, net=design != "subset") == expected


def test_the_worst_case_of_byzshields_25_workers_is_that_of_all_sets() -> None:
    """With 5 workers a partition three Byzantine workers have a majority, and the bounds are less tight."""
    assignment = place("ramanujan", 25, 5)
    assert [worst_case(assignment, q, net=True) for q in (3, 4)] == [
        WorstCase(tried(assignment, q), True) for q in (3, 4)
    ]


@given(st.integers(0, 2**32), st.integers(2, 8), st.integers(1, 9))
def test_the_worst_case_of_any_assignment_is_that_of_all_sets(seed: int, n: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    assignment = generator.random((n, k)) < 0.5
    assignment[0] |= ~assignment.any(0)
    q = int(generator.integers(0, n + 1))
    assert worst_case(assignment, q) == WorstCase(tried(assignment, q), True)


def test_a_search_that_is_given_up_bounds_the_worst_case(monkeypatch: pytest.MonkeyPatch) -> None:
    assignment = place("ramanujan", 25, 5)[:, :24]  # another assignment than that of other tests: results are kept
    monkeypatch.setattr(module, "NODES", 1)
    worst = worst_case(assignment, 4)
    assert not worst.exact
    assert worst.lost >= tried(assignment, 4)


# --- Who is Byzantine for certain ------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(2, 8), st.integers(0, 4), st.floats(0.1, 0.8))
def test_certainly_byzantine_rows_are_in_no_clique_that_could_hold_all_honest_workers(
    seed: int, n: int, s: int, density: float
) -> None:
    draw = np.random.default_rng(seed).random((n, n)) < density
    disagree = {(a, b) for a, b in itertools.combinations(range(n), 2) if draw[a, b]}
    cliques = [
        set(rows)
        for size in range(max(n - s, 0), n + 1)
        for rows in itertools.combinations(range(n), size)
        if not any(pair in disagree for pair in itertools.combinations(rows, 2))
    ]
    expected = tuple(row for row in range(n) if not any(row in c for c in cliques)) if cliques else None
    assert certainly_byzantine(disagree, s) == expected


def test_byzantine_workers_who_disagree_with_few_do_not_get_an_honest_worker_accused() -> None:
    """0, 1, 2 are honest, and 3, 4 disagree with 2 alone: the largest clique is {0, 1, 3, 4}, without the honest 2."""
    assert certainly_byzantine([(2, 3), (2, 4)], 2) == ()
    assert certainly_byzantine([(2, 3), (2, 4)], 1) == (2,)
    assert certainly_byzantine([(0, 1), (2, 3)], 1) is None
