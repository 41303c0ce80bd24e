"""How a dispute between replicas is settled: a pure function of what ranks claim, which no rank can leave half way.

A gradient is the end of a chain: weights -> inputs -> outputs -> loss gradients -> gradient. Members of a group must
agree at every link. `settle` is a coroutine. It yields what the ranks are to do, and is sent what every rank then said.
All ranks run it on the same answers, so all come to the same verdict, or to the same UnrepairedError.

Rule. Of several values, the true one is what at least two different ranks claim, and more ranks than claim any other.
Faults of different ranks are independent, so no two give the same wrong bits. So what is found to be true is true,
whatever the number of faults. It is found if one member of the group, and one other rank, have none.

The loss, where the model does not return it, cannot be recomputed, and is believed of less. If two members had the
same outputs and other loss gradients, only a third can tell; if one member alone had the right outputs, its loss
gradient is taken. That is an error only with a second fault in the same step.

Where a sample of steps is checked, each rank is a group of its own. Others have recomputed what it recorded before the
dispute, and these recomputations count as all others do.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Hashable, Iterable, Mapping, Sequence

from draco.errors import UnrepairedError
from draco.torch.claims import Answers, Ask, Claim, Finding, Heal, Mend, Repair, Runs, Verdict, Weigh, parties, truth
from draco.torch.hearing import Hearing


def disputed(
    groups: Iterable[Sequence[int]], claims: Mapping[int, Claim], runs: Runs | None = None
) -> list[Sequence[int]]:
    """Return the groups whose members do not all claim the same gradient, or of whom others recomputed another one."""
    unlike = {
        lender
        for (_, lender), run in (runs or {}).items()
        if (run.outputs, run.gradient) != (claims[lender].outputs, claims[lender].gradient)
    }
    return [group for group in groups if len({claims[rank].gradient for rank in group}) > 1 or unlike & {*group}]


def settle(
    groups: Sequence[Sequence[int]], claims: Mapping[int, Claim], weigh: bool = False, runs: Runs | None = None
) -> Generator[Ask, Answers, Verdict]:
    """Yield what the ranks are to do about claims that differ, and return the verdict.

    Args:
        groups: the ranks of each group, in order of members: those of one number form a column, which sums by itself.
        claims: of every rank, from its forward and backward pass.
        weigh: whether weights are compared even if all gradients agree.
        runs: what was recomputed before the dispute, of groups of one rank.

    Raises:
        UnrepairedError: nothing tells who is right; the message has what is known.
    """
    open_groups = disputed(groups, claims, runs)
    if not open_groups and not weigh:
        return Verdict((), ())
    weights = yield Weigh()
    findings: list[Finding] = []
    repairs: list[Repair] = []
    wrong: set[int] = set()
    if len(set(weights.values())) > 1:
        wrong = yield from _weighed(groups, weights, findings)
        open_groups = [group for group in groups if group in open_groups or wrong & {*group}]
    for group in open_groups:
        outsiders = sorted(set(claims) - set(group), key=lambda rank: (rank in wrong, rank))  # wrong ones come last
        before = {(rank, lender): run for (rank, lender), run in (runs or {}).items() if lender in group}
        sound = {pair: run for pair, run in before.items() if pair[0] not in wrong}
        verdict = yield from Hearing(group, outsiders, claims, wrong, sound).hear()
        findings += verdict.findings
        repairs += verdict.repairs
        yield Mend(verdict.repairs)
    return Verdict(tuple(findings), tuple(repairs))


def _weighed(
    groups: Sequence[Sequence[int]], weights: Mapping[int, Hashable], findings: list[Finding]
) -> Generator[Ask, Answers, set[int]]:
    """Give all ranks the right weights, name those that had others, and return them."""
    columns = [*zip(*groups, strict=True)]
    right = truth(weights.items())
    if right is None:
        raise UnrepairedError(
            f"the weights of the ranks differ, and no two ranks more agree than others do ({parties(weights)}); go on "
            "from a checkpoint before the last check"
        )
    wrong = {rank for rank, value in weights.items() if value != right}
    source = min(set(weights) - wrong)
    agreeing = len(weights) - len(wrong)
    for rank in sorted(wrong):
        one_of = spread(rank, columns, wrong)
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
