"""DETOX: how many groups Byzantine workers can win or spoil, wherever they sit, and what is made of the others."""

import itertools
import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from attacked import every_placement, gradients_for, honest
from torch import Tensor

from draco.job import Job, warnings
from draco.runs import events
from draco.schemes import DecodeError, Scheme, build
from draco.schemes.detox import lost_groups
from draco.training import build as assembly
from draco.training import server

Make = Callable[..., Job]
SIZES = [(3, 1, 3), (7, 1, 3), (9, 3, 3), (10, 2, 3), (11, 3, 3), (10, 2, 5), (9, 1, 1)]


def scheme_of(n: int, s: int, r: int, vote: str = "exact") -> Scheme:
    return build("detox", workers=n, adversaries=s, redundancy=r, vote=vote)


def counted(replies: Tensor, m: int) -> list[bytes | None]:
    """Return each group's bytes with more than half of its votes, None where there are none, by counting whole rows."""
    out: list[bytes | None] = []
    for j in range(m):
        votes = Counter(row.numpy().tobytes() for row in replies[j::m])
        bits, most = votes.most_common(1)[0]
        out.append(bits if 2 * most > votes.total() else None)
    return out


@pytest.mark.parametrize("vote", ["exact", "tolerance"])
@pytest.mark.parametrize("colluding", [True, False])
@pytest.mark.parametrize(("n", "s", "r"), SIZES)
def test_byzantine_workers_win_and_spoil_no_more_groups_than_said_wherever_they_sit(
    n: int, s: int, r: int, colluding: bool, vote: str
) -> None:
    scheme = scheme_of(n, s, r, vote)
    k = scheme.assignment.shape[1]
    gradients = gradients_for(scheme, 3)
    sent = honest(scheme, gradients)
    most = 0
    for rows in every_placement(n, s):
        replies = sent.clone()
        replies[list(rows)] = torch.full((s, 3), 50.0) if colluding else torch.arange(3.0 * s).view(s, 3) * 9 + 50
        expected = counted(replies, k)
        decoded = scheme.decode(replies)
        assert [row.numpy().tobytes() for row in decoded.gradients] == [bits for bits in expected if bits]
        wrong = sum(bits != row.numpy().tobytes() for bits, row in zip(expected, gradients, strict=True))
        won = [j for j in range(k) if sum(row % k == j for row in rows) > len(range(j, n, k)) // 2]
        if not won:
            assert set(decoded.suspects) <= set(rows)
        most = max(most, wrong)
    assert most == scheme.bad  # neither too few, which would be wrong, nor too many, which would be useless


@pytest.mark.parametrize("n", range(3, 15))
def test_the_most_lost_groups_are_those_of_the_worst_set_of_byzantine_workers(n: int) -> None:
    for groups, q in itertools.product(range(1, n + 1), range(n // 2)):
        sizes = [len(range(j, n, groups)) for j in range(groups)]
        sets = (Counter(row % groups for row in rows) for rows in itertools.combinations(range(n), q))
        worst = max(sum(2 * seen[j] >= sizes[j] for j in range(groups)) for seen in sets)
        assert lost_groups(n, groups, q) == worst, (groups, q)


def test_a_spoilt_group_is_left_out_and_one_more_than_there_can_be_is_an_error() -> None:
    scheme = scheme_of(9, 3, 3)
    assert scheme.bad == 1
    sent = honest(scheme, gradients_for(scheme, 4))
    sent[0], sent[3] = 1.0, 2.0  # group 0 has three opinions
    decoded = scheme.decode(sent)
    assert torch.equal(decoded.gradients, gradients_for(scheme, 4)[1:])
    assert decoded.suspects == ()
    sent[1], sent[4] = 1.0, 2.0
    with pytest.raises(DecodeError, match=r"detox: group 1 \(rows \[1, 4, 7\]\).*after groups \[0\]; at most 1 may"):
        scheme.decode(sent)


@pytest.mark.parametrize(("n", "s"), [(9, 2), (10, 2)])
def test_what_is_tolerated_holds_no_more_wrong_gradients_than_said_whoever_is_absent(n: int, s: int) -> None:
    scheme = scheme_of(n, s, 3)
    k = scheme.assignment.shape[1]
    gradients = gradients_for(scheme, 2)
    sent = honest(scheme, gradients)
    tolerated = 0
    for count in range(1, 4):
        for absent in itertools.combinations(range(n), count):
            rest = [row for row in range(n) if row not in absent]
            for byzantine in itertools.combinations(rest, s):
                replies = sent.clone()
                replies[list(byzantine)], replies[list(absent)] = 7.0, float("nan")
                try:
                    decoded = scheme.decode(replies, np.array([row not in absent for row in range(n)]))
                except DecodeError:
                    continue
                if scheme.tolerates(absent, decoded.suspects, len(decoded.gradients)):
                    wrong = int((decoded.gradients != gradients).any(1).sum())  # all are there, in order
                    assert wrong <= scheme.bad
                    tolerated += 1
        assert tolerated
    assert not scheme.tolerates([0], [], k - 1)
    assert scheme.tolerates([], [], k - 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 9, "adversaries": 1, "redundancy": 4}, "redundancy must be odd, .* got 4"),
        ({"workers": 2, "adversaries": 0}, "redundancy must be at most 2 workers, got 3"),
        ({"workers": 9, "adversaries": 4}, "4 adversaries may win 2 of 3 groups of 3, .* 9 workers tolerate 3"),
        ({"workers": 9, "adversaries": 1, "vote": "loud"}, "vote is 'loud', must be"),
    ],
)
def test_refusals_say_why(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("detox", **settings)  # type: ignore[arg-type]


# --- In training -----------------------------------------------------------------------------------------------------

DETOX = ("workers=9", "scheme={name: detox, adversaries: 2}", "aggregator=median")


def test_byzantine_workers_who_win_no_group_change_no_bit(make_job: Make, train) -> None:
    honest_run = train(make_job(*DETOX))
    attacked = train(make_job(*DETOX, "attack.name=constant", "attack.ranks=[4]"))
    assert torch.equal(attacked.model, honest_run.model)
    end = [json.loads(line) for line in (attacked.run / "events.jsonl").read_text().splitlines()][-1]
    assert (end["caught"], end["missed"], end["falsely_accused"]) == (3, 0, 0)


@pytest.mark.parametrize("attack", ["constant", "random"])
def test_adversaries_who_win_or_spoil_a_group_leave_a_usable_model(
    make_job: Make, train, attack: str, monkeypatch
) -> None:
    """Workers 1 and 4 sit in one group throughout: the aggregator has to tolerate what they win or spoil."""
    monkeypatch.setattr(server, "draw_rows", lambda *a: list(range(9)))
    seen: list[tuple[int, int]] = []

    def watched(job: Job, model: torch.nn.Module) -> assembly.Aggregate:
        inner = aggregate(job, model)
        return lambda gradients, f, *more: seen.append((len(gradients), f)) or inner(gradients, f, *more)  # type: ignore[func-returns-value]

    aggregate = assembly.build_aggregate
    monkeypatch.setattr(assembly, "build_aggregate", watched)
    attacked = (f"attack.name={attack}", "attack.ranks=[1, 4]")
    robust, fooled = train(make_job(*DETOX, *attacked)), train(make_job(*DETOX, *attacked, "aggregator=mean"))
    start = assembly.Built(make_job(*DETOX)).model
    size = float(torch.cat([p.flatten().double() for p in start.state_dict().values()]).norm())
    assert float(robust.model.norm()) < 2 * size
    if attack == "constant":
        assert seen == [(3, 1)] * 3 + [(3, 0)] * 3
        assert float(fooled.model.norm()) > 10 * size
    else:  # three opinions: left out, so two are left and none of them is bad
        assert seen == [(2, 0)] * 6
        assert torch.isfinite(fooled.model).all()
    steps = [e for e in events.read(robust.run / "events.jsonl") if e["event"] == "step"]
    assert all(e["suspects"] == ([7] if attack == "constant" else []) for e in steps)


def test_an_aggregator_that_tolerates_fewer_than_may_be_won_gives_a_warning(make_job: Make) -> None:
    (warning,) = warnings(make_job(*DETOX, "aggregator=mean"))
    assert "may win or spoil 1 gradients after detox, and mean tolerates none" in warning
    assert warnings(make_job(*DETOX)) == []
