"""How a dispute between replicas is settled: a pure function of what ranks claim, which no rank can leave half way.

A gradient is the end of a chain: weights -> inputs -> outputs -> loss gradients -> gradient. Members of a group must
agree at every link. `settle` is a coroutine. It yields what the ranks are to do, and is sent what every rank then said.
All ranks run it on the same answers, so all come to the same verdict, or to the same UnrepairedError.

Rule. Of several values, the true one is what at least two different ranks claim, and more ranks than claim any other.
Faults of different ranks are independent, so no two give the same wrong bits. So what is found to be true is true,
whatever the number of faults. It is found if one member of the group, and one other rank, have none.

The exception is what is computed outside of the model, the loss, as nobody can recompute it. If two members had the
same outputs and other loss gradients, only a third can tell. If one member alone had the right outputs, its loss
gradient is believed: that it is wrong, too, would be a second fault in the same group and step. A model that returns its
loss has no such link.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from draco.errors import UnrepairedError


@dataclass(frozen=True)
class Claim:
    """What a rank says of its step: a value for each link of the chain, equal if and only if the bits are."""

    inputs: Hashable
    outputs: Hashable
    seeds: Hashable  # the loss gradients
    gradient: Hashable


@dataclass(frozen=True)
class Weigh:
    """All ranks tell the digest of their weights: the answer maps each rank to it."""


@dataclass(frozen=True)
class Heal:
    """Rank `source` sends its weights to `ranks`. There is no answer."""

    source: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Recompute:
    """Each rank of the pairs (rank, lender) recomputes the step from what the lender recorded, which may be itself.

    The answer maps each of these ranks to a Claim, of which `outputs` and `gradient` count.
    """

    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Finding:
    """One rank, which link of the chain was wrong there, how that was found, and how it was repaired."""

    rank: int
    what: str
    found: str
    repaired: str


@dataclass(frozen=True)
class Repair:
    """Rank `rank` takes the gradient of `source`: what it `kept` of its backward pass, or its last recomputation."""

    rank: int
    source: int
    kept: bool


@dataclass(frozen=True)
class Mend:
    """The ranks of the repairs take the right gradients, before anybody recomputes for another group. No answer."""

    repairs: tuple[Repair, ...]


Ask = Weigh | Heal | Recompute | Mend
Answers = Mapping[int, Hashable]


@dataclass(frozen=True)
class Verdict:
    """What a dispute ended with: who was wrong, and whose bits go where."""

    findings: tuple[Finding, ...]
    repairs: tuple[Repair, ...]


def disputed(groups: Iterable[Sequence[int]], claims: Mapping[int, Claim]) -> list[Sequence[int]]:
    """Return the groups whose members do not all claim the same gradient."""
    return [group for group in groups if len({claims[rank].gradient for rank in group}) > 1]


def truth(votes: Iterable[tuple[int, Hashable]]) -> Hashable | None:
    """Return the value that at least two different ranks claim, and more ranks than any other; None if there is none.

    A rank may claim several values, as one that recomputes does. It counts once for each.
    """
    support: dict[Hashable, set[int]] = {}
    for rank, value in votes:
        support.setdefault(value, set()).add(rank)
    order = sorted(support, key=lambda value: -len(support[value]))
    if not order or len(support[order[0]]) < 2:
        return None
    if len(order) > 1 and len(support[order[1]]) == len(support[order[0]]):
        return None
    return order[0]


def settle(groups: Sequence[Sequence[int]], claims: Mapping[int, Claim]) -> Generator[Ask, Answers, Verdict]:
    """Yield what the ranks are to do about claims that differ, and return the verdict.

    Args:
        groups: the ranks of each group.
        claims: of every rank, from its forward and backward pass.

    Raises:
        UnrepairedError: nothing tells who is right; the message has what is known.
    """
    open_groups = disputed(groups, claims)
    if not open_groups:
        return Verdict((), ())
    weights = yield Weigh()
    findings: list[Finding] = []
    wrong: set[int] = set()
    if len(set(weights.values())) > 1:
        right = truth(weights.items())
        if right is None:
            raise UnrepairedError(
                f"the weights of the ranks differ, and no two ranks more agree than others do ({_parties(weights)}); "
                "load the last checkpoint. More ranks than two tell who is right"
            )
        wrong = {rank for rank, value in weights.items() if value != right}
        source = min(set(weights) - wrong)
        agreeing = len(weights) - len(wrong)
        findings += [
            Finding(
                rank,
                "weights",
                f"the digest of its weights is not that of {agreeing} of {len(weights)} ranks",
                f"rank {source} sent its weights",
            )
            for rank in sorted(wrong)
        ]
        yield Heal(source, tuple(sorted(wrong)))
    repairs: list[Repair] = []
    for group in open_groups:
        outsiders = sorted(set(claims) - set(group), key=lambda rank: (rank in wrong, rank))
        verdict = yield from _Hearing(group, outsiders, claims, wrong).hear()
        findings += verdict.findings
        repairs += verdict.repairs
        yield Mend(verdict.repairs)
    return Verdict(tuple(findings), tuple(repairs))


@dataclass
class _Hearing:
    """One group's dispute. `runs` has what was recomputed, by (rank, lender), in order."""

    group: Sequence[int]
    outsiders: list[int]
    claims: Mapping[int, Claim]
    wrong: set[int]  # ranks that computed with wrong weights
    runs: dict[tuple[int, int], Claim] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def hear(self) -> Generator[Ask, Answers, Verdict]:
        """Settle it: by the original claims if they suffice, otherwise by recomputing."""
        honest = [rank for rank in self.group if rank not in self.wrong]
        voted = truth((rank, self.claims[rank].gradient) for rank in honest)
        if voted is not None:
            return self._verdict(voted)
        lenders = self._with_right_inputs()
        healthy = [rank for rank in lenders if rank not in self.wrong] or lenders
        yield from self._recompute((rank, rank if rank in lenders else healthy[0]) for rank in self.group)
        while True:
            outputs = truth(self._outputs(lenders))
            if outputs is None:
                yield from self._ask_outsider(healthy[0], "outputs")
                continue
            seeds = self._seeds(outputs, lenders)
            sources = [rank for rank in lenders if self.claims[rank].seeds == seeds]
            gradient = truth(self._gradients(seeds, lenders))
            if gradient is not None:
                return self._verdict(gradient, outputs, seeds)
            done = {rank for rank, lender in self.runs if lender in sources}
            behind = [rank for rank in self.group if rank not in done]
            if behind:
                yield from self._recompute((rank, sources[0]) for rank in behind)
            else:
                yield from self._ask_outsider(sources[0], "gradients")

    def _with_right_inputs(self) -> list[int]:
        """Return the members that had the group's inputs; name the others."""
        votes = {rank: self.claims[rank].inputs for rank in self.group}
        if len(set(votes.values())) == 1:
            return list(self.group)
        right = truth(votes.items())
        if right is None:
            raise UnrepairedError(
                f"members of a group had other inputs, random state or buffers ({_parties(votes)}), and nothing tells "
                "which are right; use guard.sampler and guard.seed, and draw nothing at random outside of them"
            )
        for rank in (rank for rank in self.group if votes[rank] != right):
            self.findings.append(
                Finding(rank, "inputs", "the digest of its inputs is not the others'", "a member sent its own")
            )
        return [rank for rank in self.group if votes[rank] == right]

    def _recompute(self, runs: Iterable[tuple[int, int]]) -> Generator[Ask, Answers, None]:
        """Have ranks recompute, and keep what they say."""
        wanted = tuple(runs)
        answers = yield Recompute(wanted)
        for rank, lender in wanted:
            answer = answers[rank]
            assert isinstance(answer, Claim)
            self.runs[rank, lender] = answer

    def _ask_outsider(self, lender: int, what: str) -> Generator[Ask, Answers, None]:
        """Have a rank of another group recompute, one that was not asked yet."""
        asked = {rank for rank, _ in self.runs}
        fresh = next((rank for rank in self.outsiders if rank not in asked), None)
        again = next((rank for rank in self.outsiders if (rank, lender) not in self.runs), None)
        rank = again if fresh is None else fresh
        if rank is None:
            others = f"ranks {self.outsiders} of other groups agree with none" if self.outsiders else "no third rank"
            raise UnrepairedError(
                f"ranks {[*self.group]} computed other {what}, and recomputed them, and no two agree; {others}. "
                "Test these machines, and go on from the last checkpoint"
            )
        yield from self._recompute([(rank, lender)])

    def _outputs(self, lenders: Sequence[int]) -> list[tuple[int, Hashable]]:
        """Return who claims which outputs, of right weights and right inputs."""
        first = [(rank, self.claims[rank].outputs) for rank in lenders if rank not in self.wrong]
        return first + [(rank, claim.outputs) for (rank, _), claim in self.runs.items()]

    def _gradients(self, seeds: Hashable, lenders: Sequence[int]) -> list[tuple[int, Hashable]]:
        """Return who claims which gradient, of right weights, inputs and loss gradients."""
        first = [
            (rank, self.claims[rank].gradient)
            for rank in lenders
            if rank not in self.wrong and self.claims[rank].seeds == seeds
        ]
        return first + [
            (rank, claim.gradient) for (rank, lender), claim in self.runs.items() if self.claims[lender].seeds == seeds
        ]

    def _seeds(self, outputs: Hashable, lenders: Sequence[int]) -> Hashable:
        """Return the loss gradients of the members whose outputs were right."""
        votes = {
            rank: self.claims[rank].seeds
            for rank in lenders
            if rank not in self.wrong and self.claims[rank].outputs == outputs
        }
        if not votes:
            raise UnrepairedError(
                f"no rank of {[*self.group]} had the outputs that they recompute, so no loss gradient is known to be "
                "right; go on from the last checkpoint"
            )
        if len(set(votes.values())) == 1:
            return next(iter(votes.values()))
        right = truth(votes.items())
        if right is None:
            raise UnrepairedError(
                f"members of a group had the same outputs and other loss gradients ({_parties(votes)}); what the model "
                "does not compute cannot be recomputed: let it return the loss, or have three replicas"
            )
        return right

    def _verdict(self, gradient: Hashable, outputs: Hashable = None, seeds: Hashable = None) -> Verdict:
        """Say who was wrong and who takes whose gradient, now that it is known."""
        last = {rank: claim.gradient for (rank, _), claim in self.runs.items()}
        everyone = [*self.group, *(rank for rank in last if rank not in self.group)]
        kept = [rank for rank in self.group if self.claims[rank].gradient == gradient]
        redone = [rank for rank in everyone if last.get(rank) == gradient]
        repairs = []
        for rank in self.group:
            if rank in kept:
                continue
            source = rank if rank in redone else [*kept, *redone][0]
            repairs.append(Repair(rank, source, kept=source in kept))
        model = self.claims[kept[0]] if kept else Claim(self.claims[self.group[0]].inputs, outputs, seeds, gradient)
        told = {finding.rank for finding in self.findings} | self.wrong
        for rank in everyone:
            if rank not in told and (finding := self._finding(rank, model, repairs)):
                self.findings.append(finding)
        return Verdict(tuple(self.findings), tuple(repairs))

    def _finding(self, rank: int, right: Claim, repairs: Sequence[Repair]) -> Finding | None:
        """Return what a rank did wrong, or None."""
        runs = [
            claim.outputs == right.outputs
            and (claim.gradient == right.gradient or self.claims[lender].seeds != right.seeds)
            for (runner, lender), claim in self.runs.items()
            if runner == rank
        ]
        repair = next((repair for repair in repairs if repair.rank == rank), None)
        if repair is None:
            if all(runs):
                return None
            return Finding(rank, "recomputation", "its recomputation is not what others computed", "it was not used")
        claim = self.claims[rank]
        what = next(name for name in _LINKS if getattr(claim, name) != getattr(right, name))
        if not runs:
            found = f"{len(self.group) - len(repairs)} of {len(self.group)} members agree on another"
        elif all(runs):
            found = "its recomputation, and another rank's, give another"
        else:
            found = "it recomputed it wrongly again; two other ranks agree"
        whose = (
            "its own recomputation is used" if repair.source == rank else f"rank {repair.source} sent the right bits"
        )
        return Finding(rank, _LINKS[what], found, whose)


_LINKS = {"inputs": "inputs", "outputs": "outputs", "seeds": "loss gradient", "gradient": "gradient"}


def _parties(votes: Mapping[int, Hashable]) -> str:
    """Return which ranks agree with which: ranks [0, 2] against [1] against [3]."""
    parties: dict[Hashable, list[int]] = {}
    for rank, value in votes.items():
        parties.setdefault(value, []).append(rank)
    return "ranks " + " against ".join(str(ranks) for ranks in parties.values())
