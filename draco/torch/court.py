"""Carries out what `dispute.settle` asks of the ranks: digests of weights, recomputations, repairs. Collective."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from draco.torch import lending
from draco.torch.claims import Ask, Claim, Heal, Mend, Recompute, Repair, Undo, Verdict, Weigh
from draco.torch.dispute import settle
from draco.torch.measuring import Measure, exact
from draco.torch.peers import Peers
from draco.torch.recording import Recomputed, Recorder


@dataclass
class Kept:
    """One bucket of a checked step.

    Attributes:
        buffer: DDP's own, (length,): the sum goes there.
        copy: this rank's gradient, (length,), as the backward pass left it.
        places: for each parameter in it its identity, and where its gradient lies: shape, strides, offset.
    """

    buffer: Tensor
    copy: Tensor
    places: list[tuple[int, tuple[int, ...], tuple[int, ...], int]]

    @classmethod
    def of(cls, bucket: dist.GradBucket) -> Kept:  # type: ignore[name-defined]
        """Keep a bucket."""
        buffer = bucket.buffer()
        start = buffer.storage_offset()
        places = [
            (id(parameter), tuple(view.shape), tuple(view.stride()), int(view.storage_offset() - start))
            for parameter, view in zip(bucket.parameters(), bucket.gradients(), strict=True)
        ]
        return cls(buffer, buffer.clone(), places)

    def filled(self, gradients: Recomputed) -> Tensor:
        """Return recomputed gradients, laid out as this bucket; zeros for what had none."""
        flat = torch.zeros_like(self.copy)
        for parameter, shape, stride, offset in self.places:
            if (gradient := gradients[parameter]) is not None:
                flat.as_strided(shape, stride, offset).copy_(gradient)
        return flat


def measured(buckets: Sequence[Tensor], measure: Measure) -> list[int]:
    """Return the measure of a gradient that lies in several buckets."""
    return measure.joined([measure([bucket], number) for number, bucket in enumerate(buckets)])


class Court:
    """Holds the disputes of one guard.

    Args:
        peers: the other ranks.
        recorder: what this rank's gradient was computed from.
        measure: how results are compared.
        states: returns the tensors of the optimizers' states.
        buffers: whether all ranks have the same buffers, as DDP sends them before each forward pass.
    """

    def __init__(
        self,
        peers: Peers,
        recorder: Recorder,
        measure: Measure,
        buffers: bool,
        states: Callable[[], list[Tensor]],
    ) -> None:
        self._peers, self._recorder, self._measure, self._buffers = peers, recorder, measure, buffers
        self._states = states
        self._recomputed: list[Tensor] = []
        self._own: list[Tensor] = []  # weights and states before the last Heal
        self._kept: Sequence[Kept] = ()
        self._known: dict[str, list[Sequence[int]]] = {}

    def hold(self, kept: Sequence[Kept], gradients: Sequence[Sequence[int]], weigh: bool) -> Verdict:
        """Settle what members of groups claimed, and put the right gradients into the kept copies of all ranks.

        Args:
            kept: this rank's buckets.
            gradients: the measure of every rank's gradient.
            weigh: whether weights are compared in any case.

        Raises:
            UnrepairedError: nothing tells who is right; every rank raises it.
            LostRankError: a rank did not come.
        """
        self._kept, self._known, self._recomputed = kept, {"outputs": [], "seeds": [], "gradient": []}, []
        claims = self._claims(gradients)
        hearing = settle(self._peers.layout.groups, claims, weigh)
        answers: Mapping[int, Hashable] | None = None
        try:
            while True:
                answers = self._do(hearing.send(answers) if answers is not None else next(hearing))
        except StopIteration as ended:
            verdict: Verdict = ended.value
            return verdict

    def _claims(self, gradients: Sequence[Sequence[int]]) -> dict[int, Claim]:
        """Exchange the links of the chain that come before the gradient."""
        passes, width = self._recorder.passes, self._measure.width
        forwards = [(one, number) for one in passes for number in sorted(one.forwards)]
        leaves = [*(self._recorder.base or [])]
        for one, number in forwards:
            forward = one.forwards[number]
            leaves += [*forward.leaves, *forward.random]
            leaves += forward.buffers.values() if self._measure.tolerance is None else []
        seeds = [seed for one, number in forwards for _, seed in sorted(one.seeds[number].items())]
        outputs = [one.forwards[number].outputs for one, number in forwards]
        row = exact(leaves, self._measure.secret)
        row += self._measure.joined([measure for measure in outputs if measure is not None])
        row += self._measure.joined([self._measure(seeds)])
        rows = self._peers.rows(row)
        classes = {
            "outputs": self._classes("outputs", [one[4 : 4 + width] for one in rows]),
            "seeds": self._classes("seeds", [one[4 + width :] for one in rows]),
            "gradient": self._classes("gradient", gradients),
        }
        return {
            rank: Claim(tuple(one[:4]), classes["outputs"][rank], classes["seeds"][rank], classes["gradient"][rank])
            for rank, one in enumerate(rows)
        }

    def _classes(self, link: str, rows: Sequence[Sequence[int]]) -> list[int]:
        """Return a number for each measure of a link, the same for the same bits."""
        return self._measure.classes(rows, self._known[link])

    def _do(self, ask: Ask) -> Mapping[int, Hashable]:
        """Do what is asked, with all other ranks."""
        match ask:
            case Weigh():
                rows = self._peers.rows(exact(self._weights(), self._measure.secret))
                return {rank: tuple(row) for rank, row in enumerate(rows)}
            case Heal(source, ranks):
                tensors = [*self._weights(), *self._states()]
                self._own = [tensor.clone() for tensor in tensors] if self._peers.rank in ranks else []
                self._peers.move(tensors, source, ranks)
                return {}
            case Undo():
                if self._own:
                    for tensor, own in zip([*self._weights(), *self._states()], self._own, strict=True):
                        tensor.copy_(own)
                return {}
            case Recompute(runs):
                return self._recompute(runs)
            case Mend(repairs):
                self._repair(repairs)
                return {}

    def _weights(self) -> list[Tensor]:
        """Return what all ranks have alike: parameters, and buffers that forward passes do not change."""
        module = self._recorder.module
        fixed = [buffer for name, buffer in module.named_buffers() if name not in self._recorder.moving]
        return [*(parameter.data for parameter in module.parameters()), *(fixed if self._buffers else [])]

    def _recompute(self, runs: Sequence[tuple[int, int]]) -> dict[int, Claim]:
        """Have the ranks of the runs recompute; all learn how the results measure."""
        me, width = self._peers.rank, self._measure.width
        recorder = self._recorder
        passes, base = recorder.passes, recorder.base
        for rank, lender in runs:
            if rank != lender and me == lender:
                lending.lend(self._peers, rank, passes, base or [])
        row = [0] * (2 * width)
        for rank, lender in runs:
            if me == rank:
                if rank != lender:
                    passes, base = lending.borrow(self._peers, lender, passes, recorder.device)
                outputs, gradients = recorder.recompute(passes, base)
                self._recomputed = [one.filled(gradients) for one in self._kept]
                row = self._measure.joined(outputs) + measured(self._recomputed, self._measure)
        rows = self._peers.rows(row)
        ranks = [rank for rank, _ in runs]
        outputs_of = self._classes("outputs", [rows[rank][:width] for rank in ranks])
        gradient_of = self._classes("gradient", [rows[rank][width:] for rank in ranks])
        told = zip(ranks, outputs_of, gradient_of, strict=True)
        return {rank: Claim(None, outputs, None, gradient) for rank, outputs, gradient in told}

    def _repair(self, repairs: Sequence[Repair]) -> None:
        """Put the right bits where they are lacking."""
        copies = [one.copy for one in self._kept]
        for repair in repairs:
            right = copies if repair.kept else self._recomputed
            if self._peers.rank == repair.source == repair.rank:
                for mine, bits in zip(copies, right, strict=True):
                    mine.copy_(bits)
            elif self._peers.rank == repair.source:
                self._peers.send(right, [repair.rank])
            elif self._peers.rank == repair.rank:
                self._peers.receive(copies, repair.source)
