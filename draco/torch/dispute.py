"""How a dispute between replicas is settled: a pure function of what ranks claim, which no rank can leave half way.

A gradient is the end of a chain: weights -> inputs -> outputs -> loss gradients -> gradient. Members of a group must
agree at every link. `settle` is a coroutine. It yields what the ranks are to do, and is sent what every rank then said.
All ranks run it on the same answers, so all come to the same verdict, or to the same UnrepairedError.

Rule. Of several values, the true one is what at least two different ranks claim, and more ranks than claim any other.
Faults of different ranks are independent, so no two give the same wrong bits. So what is found to be true is true,
whatever the number of faults. It is found if one member of the group, and one other rank, have none.

Two things are believed of less. The loss, where the model does not return it, cannot be recomputed. If two members had
the same outputs and other loss gradients, only a third can tell; if one member alone had the right outputs, its loss
gradient is taken. And where two columns of ranks have other weights, after steps that were not checked, the column is
wrong of which a rank still computes wrongly. Either is an error only with a second fault in the same step or interval.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Hashable, Iterable, Mapping, Sequence

from draco.errors import UnrepairedError
from draco.torch.claims import Answers, Ask, Claim, Finding, Heal, Mend, Repair, Undo, Verdict, Weigh, parties, truth
from draco.torch.hearing import Hearing


def disputed(groups: Iterable[Sequence[int]], claims: Mapping[int, Claim]) -> list[Sequence[int]]:
    """Return the groups whose members do not all claim the same gradient."""
    return [group for group in groups if len({claims[rank].gradient for rank in group}) > 1]


def settle(
    groups: Sequence[Sequence[int]], claims: Mapping[int, Claim], weigh: bool = False
) -> Generator[Ask, Answers, Verdict]:
    """Yield what the ranks are to do about claims that differ, and return the verdict.

    Args:
        groups: the ranks of each group, in order of members: those of one number form a column, which sums by itself.
        claims: of every rank, from its forward and backward pass.
        weigh: whether weights are compared even if all gradients agree.

    Raises:
        UnrepairedError: nothing tells who is right; the message has what is known.
    """
    open_groups = disputed(groups, claims)
    if not open_groups and not weigh:
        return Verdict((), ())
    weights = yield Weigh()
    findings: list[Finding] = []
    repairs: list[Repair] = []
    wrong: set[int] = set()
    if len(set(weights.values())) > 1:
        wrong = yield from _weighed(groups, claims, weights, findings)
        open_groups = [group for group in groups if group in open_groups or wrong & {*group}]
    for group in open_groups:
        verdict = yield from _hear(group, claims, wrong)
        findings += verdict.findings
        repairs += verdict.repairs
        yield Mend(verdict.repairs)
    return Verdict(tuple(findings), tuple(repairs))


def _hear(group: Sequence[int], claims: Mapping[int, Claim], wrong: set[int]) -> Generator[Ask, Answers, Verdict]:
    """Settle one group's dispute; ranks that had wrong weights are the last to be asked as outsiders."""
    outsiders = sorted(set(claims) - set(group), key=lambda rank: (rank in wrong, rank))
    return (yield from Hearing(group, outsiders, claims, wrong).hear())


def _weighed(
    groups: Sequence[Sequence[int]],
    claims: Mapping[int, Claim],
    weights: Mapping[int, Hashable],
    findings: list[Finding],
) -> Generator[Ask, Answers, set[int]]:
    """Give all ranks the right weights, name those that had others, and return them."""
    columns = [set(column) for column in zip(*groups, strict=True)]
    right = truth(weights.items())
    if right is None:
        return (yield from _tried(groups, columns, claims, weights, findings))
    wrong = {rank for rank, value in weights.items() if value != right}
    source = min(set(weights) - wrong)
    agreeing = len(weights) - len(wrong)
    for rank in sorted(wrong):
        column = next(column for column in columns if rank in column)
        spread = len(column) > 1 and column <= wrong
        one_of = (
            f", as with all of its column: one of ranks {sorted(column)} gave it a wrong gradient" if spread else ""
        )
        found = f"the digest of its weights is not that of {agreeing} of {len(weights)} ranks{one_of}"
        findings.append(Finding(rank, "weights", found, f"rank {source} sent its own"))
    yield Heal(source, tuple(sorted(wrong)))
    return wrong


def spread(rank: int, columns: Sequence[Collection[int]], wrong: Collection[int]) -> str:
    """Return what to add of a rank if all of its column is wrong, as the fault may then be of any of them."""
    column = next(sorted(column) for column in columns if rank in column)
    if len(column) < 2 or not {*column} <= {*wrong}:
        return ""
    return f", as with all of its column: one of ranks {column} gave it a wrong gradient"


def _tried(
    groups: Sequence[Sequence[int]],
    columns: Sequence[set[int]],
    claims: Mapping[int, Claim],
    weights: Mapping[int, Hashable],
    findings: list[Finding],
) -> Generator[Ask, Answers, set[int]]:
    """Find which of two columns has the wrong weights: that of the ranks that still compute wrongly.

    Between two checks a wrong gradient goes into the weights of its column, and of that column alone. With the weights
    of one column all ranks recompute. If only ranks of one column do it wrongly, the other column was right.
    """
    unknown = UnrepairedError(
        f"the weights of the ranks differ, no two ranks more agree than others do ({parties(weights)}), and none is "
        "seen to compute wrongly now; go on from a checkpoint before the last check. Three replicas tell who is right"
    )
    first, second = columns[0], columns[-1]
    if len(columns) != 2 or len(first) < 2 or any(len({weights[rank] for rank in column}) > 1 for column in columns):
        raise unknown
    for right, wrong in ((first, second), (second, first)):
        yield Heal(min(right), tuple(sorted(wrong)))
        culprits: set[int] = set()
        try:
            for group in groups:
                verdict = yield from _hear(group, claims, wrong)
                culprits |= {finding.rank for finding in verdict.findings if finding.lasting}
        except UnrepairedError:
            culprits = set()
        if culprits and culprits <= wrong:
            found = f"it computes wrongly, and the weights of its column, ranks {sorted(wrong)}, were not the others'"
            sent = f"rank {min(right)} sent its own to the column"
            findings += [Finding(rank, "weights", found, sent, lasting=True) for rank in sorted(culprits)]
            return wrong
        yield Undo()
    raise unknown
