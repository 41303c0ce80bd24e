"""One group's dispute: who recomputes what of whom, until two different ranks agree. Pure; the rule: `dispute.py`."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from draco.errors import UnrepairedError
from draco.torch.claims import Answers, Ask, Claim, Finding, Recompute, Repair, Verdict, parties, truth

_LINKS = {"inputs": "inputs", "outputs": "outputs", "seeds": "loss gradient", "gradient": "gradient"}


@dataclass
class Hearing:
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
                return self._verdict(gradient)
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
                f"members of a group had other inputs, random state or buffers ({parties(votes)}), and nothing tells "
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
                f"members of a group had the same outputs and other loss gradients ({parties(votes)}); what the model "
                "does not compute cannot be recomputed: let it return the loss, or have three replicas"
            )
        return right

    def _verdict(self, gradient: Hashable) -> Verdict:
        """Say who was wrong and who takes whose gradient, now that it is known."""
        last = {rank: claim.gradient for (rank, _), claim in self.runs.items()}
        kept = [rank for rank in self.group if self.claims[rank].gradient == gradient]
        if not kept:
            raise UnrepairedError(
                f"ranks {[*self.group]} recompute a gradient that no backward pass of theirs gave: several faults in "
                "one step, or a part of the loss that does not go through what the model returns"
            )
        repairs = []
        for rank in (rank for rank in self.group if rank not in kept):
            source = rank if last.get(rank) == gradient else kept[0]
            repairs.append(Repair(rank, source, kept=source in kept))
        model = self.claims[kept[0]]
        everyone = [*self.group, *(rank for rank in last if rank not in self.group)]
        told = {finding.rank for finding in self.findings}
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
        if repair is None or rank in self.wrong:
            if all(runs):
                return None
            found = "its recomputation is not what others computed"
            return Finding(rank, "recomputation", found, "it was not used", lasting=True)
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
        return Finding(rank, _LINKS[what], found, whose, lasting=not all(runs))
