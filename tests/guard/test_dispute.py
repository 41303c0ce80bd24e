"""The settling of disputes, over every placement of faults on few ranks: right, or refused; never wrong."""

import itertools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import pytest

from draco.errors import JobError, UnrepairedError
from draco.torch.claims import Claim, Heal, Mend, Recompute, Undo, Verdict, Weigh, truth
from draco.torch.dispute import disputed, settle
from draco.torch.layout import Layout

FAULTS = ("none", "gradient", "outputs", "weights", "digest", "lasting", "lasting outputs", "inputs", "loss")
REPAIRABLE = ("none", "gradient", "outputs", "weights", "digest", "lasting", "lasting outputs")


@dataclass
class Rank:
    """What one rank has, and how it fails. A value that is wrong names the rank, as faults are independent."""

    rank: int
    group: int
    fault: str
    loss_inside: bool
    weights: str = "w"
    seeds: str = ""

    def __post_init__(self) -> None:
        if self.fault == "weights":
            self.weights = f"w{self.rank}"

    def computed(self, lent: "Rank", again: bool) -> Claim:
        """Return what this rank computes from what a rank has recorded."""
        own = again or lent is not self
        inputs = f"x{lent.rank}" if lent.fault == "inputs" else f"x of {lent.group}"
        bad = self.fault == "lasting outputs" or (self.fault == "outputs" and not own)
        outputs = f"f({self.weights}, {inputs}{f', fault {self.rank}' if bad else ''})"
        if not own:
            self.seeds = "1" if self.loss_inside else f"loss({outputs}{f', {self.rank}' * (self.fault == 'loss')})"
        seeds = lent.seeds
        bad = self.fault == "lasting" or (self.fault == "gradient" and not own)
        deep = f", fault {self.rank}" if "fault" in outputs else ""
        gradient = f"g({self.weights}, {inputs}, {seeds}{deep}{f', bad {self.rank}' if bad else ''})"
        if self.fault == "digest" and not own:
            return Claim(inputs, outputs, seeds, f"lie {self.rank}")
        return Claim(inputs, outputs, seeds, gradient)


def run(
    world: int, redundancy: int, faults: Mapping[int, str], loss_inside: bool, polluted: int | None = None
) -> tuple[Verdict, list[Rank]]:
    """Play a dispute; check that every rank ends with the gradient of a world without faults.

    All ranks of a polluted column have the same wrong weights, as a step that was not checked leaves them.
    """
    layout = Layout(world, redundancy)
    ranks = [Rank(q, layout.group_of(q), faults.get(q, "none"), loss_inside) for q in range(world)]
    for rank in layout.columns[polluted] if polluted is not None else []:
        ranks[rank].weights = "w of a column"
    claims = {one.rank: one.computed(one, again=False) for one in ranks}
    own: dict[int, str] = {}
    kept: dict[int, Hashable] = {q: claims[q].gradient for q in range(world)}
    for one in ranks:
        if one.fault == "digest":
            kept[one.rank] = one.computed(one, again=True).gradient
    last: dict[int, Hashable] = {}
    hearing = settle(layout.groups, claims)
    answers: Mapping[int, Hashable] = {}
    try:
        ask = next(hearing)
        while True:
            match ask:
                case Weigh():
                    answers = {one.rank: one.weights for one in ranks}
                case Heal(source, wrong):
                    own = {rank: ranks[rank].weights for rank in wrong}
                    for rank in wrong:
                        ranks[rank].weights = ranks[source].weights
                case Undo():
                    for rank, weights in own.items():
                        ranks[rank].weights = weights
                case Recompute(runs):
                    assert len({rank for rank, _ in runs}) == len(runs)
                    answers = {rank: ranks[rank].computed(ranks[lender], again=True) for rank, lender in runs}
                    for rank, _ in runs:
                        claim = answers[rank]
                        assert isinstance(claim, Claim)
                        last[rank] = claim.gradient
                case Mend(repairs):
                    for repair in repairs:
                        kept[repair.rank] = (kept if repair.kept else last)[repair.source]
            ask = hearing.send(answers)
    except StopIteration as ended:
        verdict = ended.value
    for one in ranks:
        clean = Rank(one.rank, one.group, "none", loss_inside)
        if len({claims[q].gradient for q in layout.groups[one.group]}) > 1:
            assert kept[one.rank] == clean.computed(clean, again=False).gradient
            assert one.weights == "w"
    return verdict, ranks


@pytest.mark.parametrize("loss_inside", [True, False], ids=["loss inside", "loss outside"])
@pytest.mark.parametrize(("world", "redundancy"), [(2, 2), (3, 3), (4, 2), (6, 2), (6, 3), (4, 4)])
def test_one_faulty_rank_is_named_and_repaired(world: int, redundancy: int, loss_inside: bool) -> None:
    for rank, fault in itertools.product(range(world), FAULTS[1:]):
        alone = world == redundancy == 2 and fault in ("weights", "lasting", "lasting outputs")
        outside = redundancy == 2 and (fault == "inputs" or (fault == "loss" and not loss_inside))
        if alone or outside:
            with pytest.raises(UnrepairedError):
                run(world, redundancy, {rank: fault}, loss_inside)
            continue
        verdict, _ = run(world, redundancy, {rank: fault}, loss_inside)
        assert [finding.rank for finding in verdict.findings] == ([] if fault == "loss" and loss_inside else [rank])
        assert len(verdict.repairs) == len(verdict.findings), fault


def test_what_is_found_says_which_link_broke_and_whether_it_lasts() -> None:
    found = {fault: run(4, 2, {3: fault}, False)[0].findings[0] for fault in REPAIRABLE[1:]}
    assert {fault: one.what for fault, one in found.items()} == {
        "gradient": "gradient",
        "outputs": "outputs",
        "weights": "weights",
        "digest": "gradient",
        "lasting": "gradient",
        "lasting outputs": "outputs",
    }
    assert found["gradient"].found == "its recomputation, and another rank's, give another"
    assert found["lasting"].found == "it recomputed it wrongly again; two other ranks agree"
    assert found["lasting"].repaired == "rank 1 sent the right bits"
    assert found["gradient"].repaired == "its own recomputation is used"
    assert run(6, 3, {3: "inputs"}, False)[0].findings[0].what == "inputs"


@pytest.mark.parametrize("loss_inside", [True, False], ids=["loss inside", "loss outside"])
def test_one_faulty_rank_in_each_group_is_repaired(loss_inside: bool) -> None:
    """Weights need two right ranks, and a tie-breaker one that is right."""
    for one, other in itertools.product(("gradient", "outputs", "digest"), repeat=2):
        verdict, _ = run(4, 2, {0: one, 3: other}, loss_inside)
        assert {finding.rank for finding in verdict.findings} == {0, 3}


@pytest.mark.parametrize("loss_inside", [True, False], ids=["loss inside", "loss outside"])
@pytest.mark.parametrize(("world", "redundancy"), [(2, 2), (3, 3), (4, 2), (6, 3)])
def test_however_many_ranks_are_faulty_no_rank_goes_on_with_a_wrong_gradient(
    world: int, redundancy: int, loss_inside: bool
) -> None:
    """A loss outside of the model is believed of the only rank with right outputs, so it is left out there."""
    kinds_of_faults = FAULTS[1:] if loss_inside else FAULTS[1:-1]
    refused = repaired = 0
    most = 3 if world < 6 else 2
    for count in range(2, most + 1):
        for where in itertools.combinations(range(world), min(count, world)):
            for kinds in itertools.product(kinds_of_faults, repeat=len(where)):
                try:
                    run(world, redundancy, dict(zip(where, kinds, strict=True)), loss_inside)
                    repaired += 1
                except UnrepairedError:
                    refused += 1
    assert refused
    assert repaired or world == 2


@pytest.mark.parametrize("loss_inside", [True, False], ids=["loss inside", "loss outside"])
@pytest.mark.parametrize(("rank", "column"), [(3, 1), (2, 1), (0, 0), (1, 0)])
def test_of_two_columns_the_one_with_a_rank_that_computes_wrongly_had_the_wrong_weights(
    rank: int, column: int, loss_inside: bool
) -> None:
    for fault in ("lasting", "lasting outputs"):
        verdict, ranks = run(4, 2, {rank: fault}, loss_inside, polluted=column)
        assert {finding.rank for finding in verdict.findings} == {rank}
        assert {one.weights for one in ranks} == {"w"}
        assert "of its column" in verdict.findings[0].found


def test_of_two_columns_neither_is_believed_if_nobody_computes_wrongly_now() -> None:
    for column in (0, 1):
        with pytest.raises(UnrepairedError, match="none is seen to compute wrongly now"):
            run(4, 2, {}, True, polluted=column)


@pytest.mark.parametrize("column", [0, 1, 2])
def test_of_three_columns_the_majority_has_the_right_weights(column: int) -> None:
    verdict, ranks = run(6, 3, {}, True, polluted=column)
    assert {finding.rank for finding in verdict.findings} == set(Layout(6, 3).columns[column])
    assert all("one of ranks" in finding.found for finding in verdict.findings)
    assert {one.weights for one in ranks} == {"w"}


def test_groups_that_agree_have_no_dispute() -> None:
    claims = {rank: Claim("x", "y", "z", rank % 2) for rank in range(4)}
    assert disputed(Layout(4, 2).groups, claims) == []
    with pytest.raises(StopIteration) as ended:
        next(settle(Layout(4, 2).groups, claims))
    assert ended.value.value == Verdict((), ())


def test_truth_needs_two_ranks_and_more_than_any_other_value_has() -> None:
    assert truth([(0, "a"), (1, "a"), (2, "b")]) == "a"
    assert truth([(0, "a"), (0, "a"), (1, "b")]) is None
    assert truth([(0, "a"), (1, "a"), (2, "b"), (3, "b")]) is None
    assert truth([(0, "b"), (0, "a"), (1, "a")]) == "a"
    assert truth([]) is None


def test_a_layout_puts_members_of_a_group_far_apart() -> None:
    layout = Layout(6, 2)
    assert layout.groups == [[0, 3], [1, 4], [2, 5]]
    assert layout.columns == [[0, 1, 2], [3, 4, 5]]
    assert [(layout.group_of(q), layout.member_of(q)) for q in (0, 4)] == [(0, 0), (1, 1)]


@pytest.mark.parametrize(("world", "redundancy"), [(4, 1), (5, 2), (2, 3)])
def test_a_layout_that_does_not_come_out_even_is_refused(world: int, redundancy: int) -> None:
    with pytest.raises(JobError, match="redundancy"):
        Layout(world, redundancy)
