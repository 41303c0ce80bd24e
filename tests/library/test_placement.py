"""Placement: votes on every partition, wherever the Byzantine workers sit and however they collude; and training."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from attacked import every_placement, gradients_for, honest, with_wrong, wrong_replies
from torch import Tensor

from draco.job import Job, aggregator_f, sizes
from draco.runs import events
from draco.schemes import DecodeError, Scheme, build

Make = Callable[..., Job]
SMALL = [("ramanujan", 9, 2), ("ramanujan", 9, 3), ("subset", 6, 2), ("mols", 12, 2)]


def scheme_of(design: str, n: int, s: int, **options: object) -> Scheme:
    return build("placement", workers=n, adversaries=s, design=design, **options)


def where_they_are_most(scheme: Scheme, sent: Tensor, rows: Sequence[int], spoil: bool = False) -> Tensor:
    """Return the replies where Byzantine rows send wrong gradients, the same or different ones, where they win."""
    k, load = scheme.assignment.shape[1], scheme.redundancy
    replies = sent.clone().view(scheme.workers, load, -1)
    for j in range(k):
        byzantine = [row for row in rows if scheme.assignment[row, j]]
        if 2 * len(byzantine) > scheme.assignment[:, j].sum():
            for row in byzantine:
                place = int(scheme.assignment[row, :j].sum())
                replies[row, place] = 50.0 + j + row * spoil
    return replies.flatten(1)


def wrong(decoded: Tensor, gradients: Tensor) -> int:
    """Return how many of the gradients are missing or something else."""
    kept = {row.numpy().tobytes() for row in decoded}
    return sum(row.numpy().tobytes() not in kept for row in gradients)


@pytest.mark.parametrize("vote", ["exact", "tolerance"])
@pytest.mark.parametrize(("design", "n", "s"), SMALL)
def test_byzantine_workers_who_collude_win_no_more_partitions_than_said_and_accuse_nobody(
    design: str, n: int, s: int, vote: str
) -> None:
    scheme = scheme_of(design, n, s, vote=vote)
    gradients = gradients_for(scheme, 3)
    sent = honest(scheme, gradients)
    most = {False: 0, True: 0}
    for rows, spoil in itertools.product(every_placement(n, s), (False, True)):
        decoded = scheme.decode(where_they_are_most(scheme, sent, rows, spoil))
        assert set(decoded.suspects) <= set(rows)
        most[spoil] = max(most[spoil], wrong(decoded.gradients, gradients))
    assert max(most.values()) <= scheme.bad
    assert design == "subset" or most[False] == scheme.bad == {2: 1, 3: 3}[s]  # as many as said can be won


@pytest.mark.parametrize(("design", "n", "s"), SMALL)
def test_byzantine_workers_who_attack_everywhere_are_found_wherever_they_sit(design: str, n: int, s: int) -> None:
    scheme = scheme_of(design, n, s)
    gradients = gradients_for(scheme, 3)
    sent = honest(scheme, gradients)
    for number, rows in enumerate(every_placement(n, s)):
        attacks = list(wrong_replies(scheme, sent, rows).values())
        decoded = scheme.decode(with_wrong(sent, rows, attacks[number % len(attacks)]))
        assert set(decoded.suspects) <= set(rows)
        assert wrong(decoded.gradients, gradients) <= scheme.bad
        constant = scheme.decode(with_wrong(sent, rows, wrong_replies(scheme, sent, rows)["constant"]))
        assert constant.suspects == rows  # so that no Byzantine row is left to win a vote
        left = [j for j, of in enumerate(scheme.assignment.T) if not set(np.flatnonzero(of).tolist()) <= set(rows)]
        assert torch.equal(constant.gradients, gradients[left])


def test_what_workers_compute_alike_within_the_tolerance_is_no_disagreement() -> None:
    scheme = scheme_of("mols", 12, 2, vote="tolerance")
    gradients = gradients_for(scheme, 40)
    sent = honest(scheme, gradients, noise=3e-7)
    decoded = scheme.decode(sent)
    assert decoded.suspects == ()
    torch.testing.assert_close(decoded.gradients, gradients, rtol=4e-6, atol=1e-7)
    assert scheme.decode(with_wrong(sent, (5, 9), sent[[5, 9]] * 1.01)).suspects == (5, 9)
    with pytest.raises(DecodeError, match="no 2 Byzantine workers explain who disagrees"):
        scheme_of("mols", 12, 2).decode(sent)


@pytest.mark.parametrize(("n", "s"), [(9, 1), (9, 2)])
def test_what_is_tolerated_holds_no_more_wrong_gradients_than_said_whoever_is_absent(n: int, s: int) -> None:
    scheme = scheme_of("ramanujan", n, s)
    k = scheme.assignment.shape[1]
    gradients = gradients_for(scheme, 2)
    sent = honest(scheme, gradients)
    tolerated = 0
    for absent in [*itertools.combinations(range(n), 1), *itertools.combinations(range(n), 2)]:
        rest = [row for row in range(n) if row not in absent]
        for byzantine in itertools.combinations(rest, s):
            replies = where_they_are_most(scheme, sent, byzantine)
            replies[list(absent)] = float("nan")
            try:
                decoded = scheme.decode(replies, np.array([row not in absent for row in range(n)]))
            except DecodeError:
                continue
            if scheme.tolerates(absent, decoded.suspects, len(decoded.gradients)):
                assert len(decoded.gradients) == k
                assert wrong(decoded.gradients, gradients) <= scheme.bad
                tolerated += 1
    assert tolerated


def test_partitions_that_nobody_sent_are_an_error_that_names_them() -> None:
    scheme = scheme_of("ramanujan", 9, 2)
    sent = honest(scheme, gradients_for(scheme, 2))
    with pytest.raises(DecodeError, match=r"placement: partitions \[0, 1\] have no majority, at most 1 may"):
        scheme.decode(sent, np.arange(9) >= 6)
    with pytest.raises(ValueError, match="replies have 7 elements, must be 3 gradients of d each"):
        scheme.decode(torch.zeros(9, 7))


def test_more_adversaries_than_a_placement_tolerates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"4 adversaries may win or spoil 5 partitions, .* it tolerates 3"):
        scheme_of("ramanujan", 9, 4)
    assert (
        "up to 3 adversaries, who may win or spoil 3 partitions; vote on bits" in scheme_of("ramanujan", 9, 3).summary
    )


# --- In training -----------------------------------------------------------------------------------------------------

PLACED = ("workers=9", "batch_size=18", "scheme={name: placement, design: ramanujan, adversaries: 2}", "steps=2")


def test_byzantine_workers_who_attack_everywhere_change_no_bit_of_the_model_and_replies_are_load_times_as_long(
    make_job: Make, train
) -> None:
    runs = [train(make_job(*PLACED, "aggregator=median", *attacked)) for attacked in ((), ("attack=constant",))]
    assert torch.equal(runs[0].model, runs[1].model)
    steps = [e for e in events.read(runs[1].run / "events.jsonl") if e["event"] == "step"]
    assert all(len(e["suspects"]) == 2 for e in steps)
    assert all(e["bytes_received"] == 9 * (64 + 3 * 4 * (431_080 + 1)) for e in steps)


def test_with_the_mean_a_placement_takes_the_step_that_uncoded_workers_take(make_job: Make, train) -> None:
    placed, plain = train(make_job(*PLACED)), train(make_job(*PLACED[:2], "steps=2"))
    assert float((placed.model - plain.model).norm() / plain.model.norm()) < 1e-5


@pytest.mark.parametrize(
    ("design", "n", "r"), [("mols", 12, 3), ("ramanujan", 9, 3), ("ramanujan", 25, 5), ("subset", 6, 5)]
)
def test_the_job_knows_the_numbers_of_the_scheme(make_job: Make, design: str, n: int, r: int) -> None:
    spec = f"scheme={{name: placement, design: {design}, redundancy: {r}, adversaries: 1}}"
    job = make_job(spec, f"workers={n}", "batch_size=30", "aggregator=median")
    scheme = scheme_of(design, n, 1, redundancy=r)
    assert (sizes(job).partitions, aggregator_f(job)) == (scheme.assignment.shape[1], scheme.bad)
