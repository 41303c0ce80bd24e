"""The server of steps in several rounds: rounds -> true vectors -> aggregate -> optimizer step -> what is told.

A protocol with a `close` is *pipelined*: a step's vectors are used before they are verified, in the next step. Where
one is found to be false, the update is undone and taken again with the true vector, and the next step begins anew. The
event of a step is told once nothing of it can change. Before a checkpoint, an evaluation and the end the last step is
verified (`settle`), so nothing unverified is ever saved or measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from secrets import token_bytes
from typing import Any

import numpy as np

from draco.errors import TrainingError
from draco.job import Job, attack
from draco.protocols.court import Court, Proof
from draco.protocols.rounds import RECORDED, Committed, Outcome, Upload
from draco.runs.events import EventLog
from draco.sampling import derive_seed
from draco.schemes import SCHEMES
from draco.training import adversary, greeting, rounds
from draco.training.build import Built
from draco.training.clock import Clock, rounded
from draco.training.greeting import Greeting
from draco.training.reduce import build_reduce
from draco.training.replayer import Replayer
from draco.training.rounds import Driver, Told
from draco.training.state import Taken, Training
from draco.training.transport import ServerTransport


@dataclass
class _Step:
    """A step that was taken, until its event is told."""

    committed: Committed
    before: dict[str, Any]  # the training before it, to which it goes back where it has to be undone
    loss: float
    taken: Taken
    told: Told
    clock: Clock


class PairServer:
    """Runs the steps of one job."""

    def __init__(
        self, built: Built, training: Training, transport: ServerTransport, secret: bytes, log: EventLog,
        greetings: Sequence[Greeting | None],
    ) -> None:  # fmt: skip
        assert built.protocol is not None
        job = built.job
        self.job, self.training, self.transport, self.secret, self.log = job, training, transport, secret, log
        self.protocol = built.protocol
        self.court = Court(job.workers, job.scheme.adversaries, training.proofs)
        self.court.watched = training.watched
        self.replayer = Replayer(built) if {*RECORDED} & {*self.protocol.sends} else None
        check, products = (self.replayer.check, self.replayer.products) if self.replayer else (None, 0)
        self.driver = Driver(job, self.protocol, transport, built.format, training.device, check, products)
        if "sketch" not in self.protocol.sends:
            self.driver.unlike = unlike(greetings, job)
        self.reduce = build_reduce(built, training)
        self._open: _Step | None = None
        self._pairs: dict[int, set[tuple[int, int, bool]]] = {}
        self._draws = 0  # of the court's generator, each of another seed
        self._fresh = secret + token_bytes(16)  # of this launch

    def run_step(self) -> list[dict[str, Any]]:
        """Take one step and return the events of steps of which nothing can change any more.

        Raises:
            TrainingError: it cannot be taken.
            WorkerError: too few workers are left to take it.
        """
        step, before, watched = self.training.step + 1, {**self.court.expelled}, {*self.court.watched}
        try:
            return self._taken()
        finally:  # also of a step that comes to nothing: who is out stays so
            self._record_expulsions(before)
            for rank in sorted(self.court.watched - watched):
                self.log.write("watched", step=step, rank=rank)

    def _taken(self) -> list[dict[str, Any]]:
        step, events, clock, wasted = self.training.step + 1, list[dict[str, Any]](), Clock(), 0
        while True:
            outcome, told = self._rounds(step, clock)
            told.bytes_received += wasted
            if not outcome.replaced:
                break
            wasted = told.bytes_received
            self._undo(outcome.replaced)
            events += self._tell()
        events += self._tell()
        committed = Committed(step, tuple(outcome.uploads), tuple(outcome.workers))
        if self.protocol.close is not None and not rounds.finite(committed.uploads):
            replaced, received = self._replaced(committed, clock)
            committed, told.bytes_received = _with(committed, replaced), told.bytes_received + received
        self._take(committed, told, clock)
        if self.protocol.close is None or not self.court.lies:
            events += self._tell()
        return events

    def settle(self) -> list[dict[str, Any]]:
        """Verify what is not verified yet; return the events of steps of which nothing can change any more."""
        if self._open is None:
            return []
        before = {**self.court.expelled}
        try:
            replaced, received = self._replaced(self._open.committed, self._open.clock)
            self._open.told.bytes_received += received
            if replaced:
                self._undo(replaced)
            return self._tell()
        finally:
            self._record_expulsions(before)

    def forsake(self) -> None:
        """Go back to before a step that is not verified, as the run ends and cannot verify it."""
        if self._open is not None and self._open.before:
            self.training.back(self._open.before)
        self._open = None

    def _rounds(self, step: int, clock: Clock) -> tuple[Outcome, Told]:
        self._draw(step)
        if self.replayer is not None:
            self.replayer.load(step, self.training.sent)
        rounds_ = self.protocol.step(self.court, step, None if self._open is None else self._open.committed)
        outcome, told = self.driver.run(rounds_, self.court, step, self.training.sent, self._leak(step), clock.lap)
        self._count(told)
        told.suspects |= {*outcome.suspects}
        return outcome, told

    def _replaced(self, committed: Committed, clock: Clock) -> tuple[Mapping[int, Upload], int]:
        """Verify a step with workers who have its model; return true vectors in the place of false ones, and bytes."""
        assert self.protocol.close is not None
        step = committed.step
        self._draw(step)
        rounds_ = self.protocol.close(self.court, committed)
        replaced, told = self.driver.run(
            rounds_, self.court, step, self.training.sent, self._leak(step), clock.lap, loads=False
        )
        self._count(told)
        return replaced, told.bytes_received

    def _draw(self, step: int) -> None:
        """Give the court what is drawn from now on: unknown to everybody.

        A resumed run draws anew for the steps that it takes again: Byzantine workers have seen what was drawn for them.
        """
        self._draws += 1
        self.court.generator = np.random.default_rng(derive_seed(self._fresh, "court", step, self._draws))

    def _leak(self, step: int) -> Any:
        return lambda main: adversary.leak(self.job, self.secret, step, main)

    def _count(self, told: Told) -> None:
        for step, asked in told.pairs.items():
            self._pairs.setdefault(step, set()).update(asked)

    def _take(self, committed: Committed, told: Told, clock: Clock) -> None:
        """Take the optimizer step of a step's vectors."""
        before = self.training.snapshot() if self.protocol.close is not None and self.court.lies else {}
        gradients = self.driver.gradients(committed.step, committed.uploads)
        there = gradients.to(self.training.device, non_blocking=True)  # what is made of it is waited for
        vector = self.reduce(there, committed.step, range(self.job.workers), ())
        clock.lap("aggregate")
        known = [upload.digest.hex() for upload in committed.uploads] if self.job.wire.dtype == "float32" else None
        self.training.chain.about(vector=vector, gradients=gradients, partitions=known)
        taken = self.training.update(vector)
        clock.lap("update")
        self._open = _Step(committed, before, vector[-1].item(), taken, told, clock)

    def _undo(self, replaced: Mapping[int, Upload]) -> None:
        """Take the open step again with the true vectors in the place of false ones."""
        assert self._open is not None
        false = self._open
        workers = sorted({false.committed.workers[partition] for partition in replaced})
        self.log.write("undone", step=false.committed.step, partitions=sorted(replaced), workers=workers)
        self.training.back(false.before)
        self._take(_with(false.committed, replaced), false.told, false.clock)

    def _tell(self) -> list[dict[str, Any]]:
        """Return the event of the open step, if there is one, and close it."""
        if self._open is None:
            return []
        open_, self._open = self._open, None
        told, clock, step = open_.told, open_.clock, open_.committed.step
        asked = self._pairs.pop(step, set())
        here = {rank for rank, *_ in asked}  # a step that is taken again is so without whom it proved to lie before
        expelled = {r: proof for r, proof in self.court.expelled.items() if proof.step == step and r in here}
        suspects = {*expelled, *told.refused, *told.suspects}
        out = {rank for rank, proof in self.court.expelled.items() if proof.step < step}
        took_part = here - told.silent - out
        byzantine = {*adversary.byzantine(self.job, step)} & took_part
        if (declared := attack(self.job)) and declared.truthful:
            byzantine = set()
        self.training.ledger.note(suspects, byzantine)
        lost = {*self.transport.gone()} - {*told.refused}
        clock.seconds.setdefault("exchange", 0.0)
        clock.split_exchange(told.timings, self.transport.concurrent)
        norm = open_.taken.gradient_norm
        return [
            {
                "step": step,
                "loss": open_.loss,
                "lr": open_.taken.lr,
                **({} if norm is None else {"gradient_norm": norm}),
                "suspects": sorted(suspects),
                "byzantine": sorted(byzantine),
                "refused": {str(rank): why for rank, why in sorted({**told.failed, **told.refused}.items())},
                "lost": sorted(lost),
                "straggling": sorted(told.silent - lost),
                "seconds": rounded(clock.seconds),
                "bytes_received": told.bytes_received,
                **({"waited": rounded(told.late)} if told.late else {}),
                "copies": round(sum(computed for *_, computed in asked) / self.protocol.partitions, 4),
                "rounds": told.rounds,
                "standing": len(self.court.standing),
                "redundancy": self.protocol.copies(self.court.lies),
                **({"expelled": {str(rank): proof._asdict() for rank, proof in expelled.items()}} if expelled else {}),
            }
        ]

    def _record_expulsions(self, before: Mapping[int, Proof]) -> None:
        for rank, proof in self.court.expelled.items():
            if rank not in before:
                self.log.write("expelled", rank=rank, **proof._asdict())


def _with(committed: Committed, replaced: Mapping[int, Upload]) -> Committed:
    uploads = tuple(replaced.get(partition, upload) for partition, upload in enumerate(committed.uploads))
    return committed._replace(uploads=uploads)


def require_alike(greetings: Sequence[Greeting | None], job: Job) -> None:
    """Refuse to start where more workers than may lie compute other bits than most do, or than the server that replays.

    Raises:
        TrainingError: says which.
    """
    strange = unlike(greetings, job)
    if len(strange) > job.scheme.adversaries:
        raise TrainingError(
            f"scheme.name: {job.scheme.name} compares bits, and workers {', '.join(map(str, sorted(strange)))} run on "
            "another torch, instruction set, number of threads or device than most; use alike machines"
        )


def unlike(greetings: Sequence[Greeting | None], job: Job) -> set[int]:
    """Return the workers that are never asked: they compute other bits than most, or than the server that replays."""
    replays = SCHEMES[job.scheme.name].replays
    return greeting.unlike(greetings, greeting.platform_of(job) if replays else None)
