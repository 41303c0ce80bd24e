"""The communication hook: sums each bucket over this rank's column, and compares the group before the step goes on.

The sum of a bucket begins at once, and the backward pass goes on meanwhile, as with DDP. With the last bucket all ranks
exchange one row: how their gradients measure. Where a group differs, the dispute is settled before backward() returns,
and columns with a repaired rank sum again. So `.grad` holds, after backward(), what it would without the fault.

With `every` above 1 no group computes the same. In a checked step other ranks recompute each rank's gradient then.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from draco.errors import JobError, UnrepairedError
from draco.torch.court import Court, Kept, measured
from draco.torch.evidence import LOGGER, Register
from draco.torch.measuring import Measure, common, draw, same_bits
from draco.torch.peers import Peers
from draco.torch.recording import Recorder

Future = torch.futures.Future[torch.Tensor]

EQUAL, OTHER, UNSTABLE = range(3)  # what a rank recomputes: the same, always the same other thing, or never the same


class Reducer:
    """What DDP calls with each bucket.

    Args:
        peers: the other ranks.
        recorder: what the gradient is computed from.
        measure: how gradients are compared.
        court: settles disputes.
        register: what was found, and counters.
        every: each `every`-th step is checked, the first one included; all are once a rank keeps computing wrongly.
            Above 1 each rank has samples of its own, and others recompute its gradient.
        causes: returns sentences about what may make two computations differ.
    """

    def __init__(
        self,
        peers: Peers,
        recorder: Recorder,
        measure: Measure,
        court: Court,
        register: Register,
        every: int,
        causes: Callable[[], list[str]],
    ) -> None:
        self._peers, self._recorder, self._measure, self._court = peers, recorder, measure, court
        self._register, self._every, self._causes = register, every, causes
        self._kept: list[Kept] = []
        self._sums: list[dist.Work] = []
        self._means: list[tuple[Future, torch.Tensor]] = []  # what DDP waits for, of each bucket
        self._measures: list[torch.Tensor] = []
        measure.secret = common([row[0] for row in peers.rows([draw()])])

    @property
    def step(self) -> int:
        """The step that is under way, from 1."""
        return self._register.steps + 1

    def begin(self, ddp: DistributedDataParallel, inputs: Any) -> None:
        """Note that this rank has come to a forward pass: DDP calls it before its own.

        DDP sends buffers then. Over gloo that waits for a lost rank, with the time limit of the user's group, which is
        half an hour by default. So the ranks meet first, with the guard's.
        """
        self._peers.at(self.step, summing=False)
        if dist.get_backend() == "gloo" and ddp.will_sync_module_buffers():  # type: ignore[no-untyped-call]
            self._peers.meet()

    def _checks(self) -> bool:
        """Return whether the step under way is checked."""
        return (self.step - 1) % self._every == 0

    def reduce(self, state: object, bucket: dist.GradBucket) -> Future:  # type: ignore[name-defined]
        """Return the future of a bucket's sum."""
        checked = self._checks()
        if not self._sums:
            self._peers.at(self.step, summing=True)
        if checked:
            kept = Kept.of(bucket)
            self._kept.append(kept)
            self._measures.append(self._measure([kept.copy], len(self._measures)))
        buffer = bucket.buffer()
        self._sums.append(self._sum(buffer))
        future: Future = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else None)
        self._means.append((future, buffer))
        if bucket.is_last():
            if checked:
                self._check()
            self._finish()
            for each, mean in self._means:
                each.set_result(mean)
            self._sums, self._means = [], []
            self._register.steps += 1
            self._recorder.clear(armed=self._checks())
        return future

    def _sum(self, buffer: torch.Tensor) -> dist.Work:
        """Begin to replace a buffer by its mean over the ranks that sum.

        Nothing is to be called when it is there: gloo's threads would call it, or forget it while Python ends, and then
        end the process.
        """
        buffer.mul_(1.0 / self._peers.summed)
        work: dist.Work | None = dist.all_reduce(buffer, group=self._peers.summing, async_op=True)
        assert work is not None
        return work

    def _finish(self) -> None:
        """Wait for the sums that have begun; on a GPU its stream does, and this process goes on."""
        with self._peers.lost():
            for work in self._sums:
                work.wait()

    def _check(self) -> None:
        """Compare this step with the other ranks, and settle what differs."""
        repeats = EQUAL if self._register.last else self._repeats()
        rows = self._peers.rows([draw(), repeats, *self._measure.joined(self._measures)])
        self._refuse([row[1] for row in rows])
        gradients = [row[2:] for row in rows]
        layout = self._peers.layout
        if layout.sampled or any(
            not self._measure.same(gradients[group[0]], gradients[rank]) for group in layout.groups for rank in group
        ):
            self._settle(gradients)
        if self._register.last == 0 and len(self._peers.columns) > 1:
            self._compare_sums()
        self._measure.secret = common([row[0] for row in rows])
        self._register.last = self.step
        self._register.checked += 1
        self._kept, self._measures = [], []

    def _settle(self, gradients: list[list[int]]) -> None:
        """Hold the court, and sum again where a rank was repaired."""
        self._finish()
        try:
            verdict = self._court.hold(self._kept, gradients)
        except UnrepairedError as error:
            self._register.disputes += 1
            raise UnrepairedError(f"step {self.step}: {error}") from None
        self._register.disputes += bool(verdict.findings)
        self._register.enter(verdict.findings, self.step, self._register.last + 1)
        if self._every > 1 and any(finding.lasting for finding in verdict.findings):
            LOGGER.warning("a rank keeps computing wrongly: from now on every step is checked")
            self._every = 1
        self._register.repaired += len(verdict.repairs)
        ranks = dist.get_process_group_ranks(self._peers.summing)
        if any(repair.rank in ranks for repair in verdict.repairs):
            self._sums[:] = []
            for kept in self._kept:
                kept.buffer.copy_(kept.copy)
                self._sums.append(self._sum(kept.buffer))
            self._finish()

    def _repeats(self) -> int:
        """Return EQUAL, OTHER or UNSTABLE: how this rank's recomputations are to what its backward pass gave."""
        claimed = self._measure.joined(self._measures)
        runs = [[kept.copy for kept in self._kept]]
        for _ in range(2):
            _, gradients = self._recorder.recompute(self._recorder.passes, self._recorder.base)
            runs.append([kept.filled(gradients) for kept in self._kept])
            if self._measure.tolerance is not None:
                return EQUAL if self._measure.same(claimed, measured(runs[-1], self._measure)) else OTHER
            for place, earlier in enumerate(runs[:-1]):
                if all(map(same_bits, earlier, runs[-1])):
                    return OTHER if place else EQUAL
        return UNSTABLE

    def _refuse(self, repeats: list[int]) -> None:
        """Refuse a model whose steps cannot be recomputed. One rank that gets something other may have had a fault."""
        unstable = [rank for rank, code in enumerate(repeats) if code == UNSTABLE]
        if unstable:
            raise JobError(
                [
                    f"ranks {unstable} computed the first step's gradient three times, and never the same bits twice: "
                    f"{'; '.join(self._causes()) or 'the model has an operation that is not deterministic'}; see "
                    "docs/torch.md, or give the guard a tolerance"
                ]
            )
        other = [rank for rank, code in enumerate(repeats) if code == OTHER]
        if len(other) > 1:
            raise JobError(
                [
                    f"ranks {other} recomputed the first step from the model's inputs and its outputs' gradients, and "
                    "got other gradients: a part of the loss does not go through what the model returns; return it"
                ]
            )

    def _compare_sums(self) -> None:
        """Compare the sums of the columns at the first step: they must have the same bits."""
        self._finish()
        rows = self._peers.rows(measured([kept.buffer for kept in self._kept], self._measure))
        if any(row != rows[0] for row in rows):
            raise JobError(
                [
                    "the sums over the columns of ranks differ in their bits: the backend adds in another order on "
                    "other hosts; give the guard a tolerance, and all ranks sum together"
                ]
            )
