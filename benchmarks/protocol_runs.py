"""Simulated runs of protocols: whole numbers for vectors, the server's undoing of steps, and workers that are away.

The model is a number, too. What a worker computes depends on it, as in training. So a false vector makes another model
of all steps that follow.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.protocol_attacks import ATTACKS, Gang, answer, digest
from draco.protocols.court import Court
from draco.protocols.rounds import (
    DENIED,
    SERVER,
    Answer,
    Ask,
    Committed,
    Protocol,
    Rejected,
    Rounds,
    T,
    Upload,
)

BITS = (1 << 61) - 1


class Run(NamedTuple):
    """What a simulated run came to."""

    wrong: bool  # the model is not that of the run without attackers
    honest_expelled: int
    liars_expelled: int
    false: int  # vectors that were used, of steps that were not undone; of protocols without `close` only
    copies: float  # pairs computed / pairs
    uploads: float  # vectors received / (n * steps)
    rounds: float  # a step
    undone: int  # steps


def true_vector(model: int, step: int, partition: int) -> int:
    """Return what an honest worker computes of a pair with a model."""
    return (model * 6364136223846793005 + step * 1442695040888963407 + partition * 2862933555777941757) & BITS


def updated(model: int, vectors: Sequence[int]) -> int:
    """Return the model after a step; the order of partitions counts, as it does for floating-point numbers."""
    for vector in vectors:
        model = (model * 1000003 ^ vector) & BITS
    return model


def reference(partitions: int, steps: int) -> int:
    """Return the model of a run without attackers."""
    model = 1
    for step in range(1, steps + 1):
        model = updated(model, [true_vector(model, step, partition) for partition in range(partitions)])
    return model


def replayed(transcript: int, true: int) -> Upload | Rejected:
    """Return what a replay makes of a transcript."""
    if transcript != true:
        return Rejected("mm, product 1, is false")
    return Upload(digest(true), true, digest(transcript))


class Simulation:
    """One run. `away`: how many honest workers are absent, late or without the last model at the same time, at most."""

    def __init__(self, protocol: Protocol, n: int, s: int, attack: str, seed: int, steps: int, away: int) -> None:
        """Draw who lies and who is away; what the server draws comes from another generator."""
        self.protocol, self.n, self.steps, self.seed, self.away = protocol, n, steps, seed, away
        self.draw = random.Random(seed)
        liars = frozenset(self.draw.sample(range(1, n + 1), s))
        self.gang = Gang(liars, steps, random.Random(seed + 1))
        self.attack = ATTACKS[attack]
        self.court = Court(n, s)
        self.crashed = set(self._unlucky(away // 2))
        self.models: dict[int, int] = {}  # step -> the model that its vectors are computed with
        self.deposits: dict[tuple[int, int, int], int] = {}  # worker, step, partition -> a transcript
        self.pairs = self.vectors = self.rounds = self.undone = self.false = 0

    def _unlucky(self, number: int) -> list[int]:
        standing = [rank for rank in range(1, self.n + 1) if rank not in self.gang.liars]
        return self.draw.sample(standing, number)

    def drive(self, rounds: Rounds[T]) -> T:
        """Ask what the coroutine asks, and return what it comes to."""
        before: set[Ask] = set()
        try:
            asks = next(rounds)
            while True:
                asked = set(asks)
                assert len(asked) == len(asks), "asked twice in a round"
                assert not asked & before, "asked twice in a step"
                before |= asked
                assert not {ask.worker for ask in asks} & (self.court.expelled.keys() | self.court.absent)
                self.gang.round, self.gang.expelled = asks, frozenset(self.court.expelled)
                self.rounds += 1
                answers = {ask: self._answer(ask) for ask in asks}
                self.court.absent |= {ask.worker for ask, came in answers.items() if came is None}
                asks = rounds.send(answers)
        except StopIteration as end:
            outcome: T = end.value
            return outcome

    def _answer(self, ask: Ask) -> Answer:
        model = self.models[ask.step]
        true = true_vector(model, ask.step, ask.partition)
        self.pairs += ask.send in ("vector", "digest")
        if ask.worker == SERVER:
            return replayed(self.deposits[ask.of, ask.step, ask.partition], true)
        if ask.worker in self.gang.liars:
            came = self.attack(self.gang, ask, (model, ask.step, ask.partition), true)
        elif ask.worker in self.late:
            came = None
        elif ask.send == "verdict":
            made = replayed(self.deposits[ask.of, ask.step, ask.partition], true)
            came = made.digest if isinstance(made, Upload) else DENIED
        else:
            came = answer(ask, true)
        self.vectors += ask.send == "vector" and isinstance(came, Upload)
        if ask.send == "opening" and isinstance(came, Upload):
            return replayed(came.vector, true)
        if ask.send == "deposit" and isinstance(came, Upload):
            self.deposits[ask.worker, ask.step, ask.partition] = came.vector
            return b""
        return came

    def _weather(self, step: int) -> None:
        """Draw who is away at this step, who is late in it, and who has not the last model."""
        self.court.generator = np.random.default_rng((self.seed, step, self.undone))
        spare = self.away - self.away // 2
        before = self.court.absent - self.crashed
        gone = self._unlucky(self.draw.randint(0, spare)) if self.draw.random() < 0.5 else []
        self.late = set(gone[::2]) | (self.crashed if step <= 2 else set())
        self.court.absent = set(gone[1::2]) | (self.crashed if step > 2 else set())
        self.court.lacking = set() if gone else before & set(range(1, self.n + 1)) - self.gang.liars

    def result(self) -> Run:
        """Take all steps, and say what came of them."""
        model, step, committed = 1, 1, None
        before = model
        while step <= self.steps or committed:
            self.models[step] = model
            self._weather(step)
            if step > self.steps or (committed and self.protocol.close and self.draw.random() < 0.1):
                assert committed
                assert self.protocol.close
                replaced = self.drive(self.protocol.close(self.court, committed))
                uploads: tuple[Upload, ...] = ()
            else:
                outcome = self.drive(self.protocol.step(self.court, step, committed))
                uploads, replaced = outcome.uploads, outcome.replaced
            if replaced:
                assert committed
                assert not uploads
                self.undone += 1
                model = updated(
                    before, [replaced.get(at, upload).vector for at, upload in enumerate(committed.uploads)]
                )
                committed = None
                continue
            committed = None
            if uploads:
                if not self.protocol.close:
                    true = [true_vector(model, step, partition) for partition in range(self.protocol.partitions)]
                    self.false += sum(upload.vector != v for upload, v in zip(uploads, true, strict=True))
                if self.protocol.close:
                    assert not set(outcome.workers) & set(self.court.expelled)
                    committed = Committed(step, uploads, outcome.workers)
                before, model, step = model, updated(model, [upload.vector for upload in uploads]), step + 1
        liars, k = self.gang.liars, self.protocol.partitions
        return Run(
            wrong=model != reference(k, self.steps),
            honest_expelled=len(set(self.court.expelled) - liars),
            liars_expelled=len(set(self.court.expelled) & liars),
            false=self.false,
            copies=self.pairs / (k * self.steps),
            uploads=self.vectors / (self.n * self.steps),
            rounds=self.rounds / self.steps,
            undone=self.undone,
        )


def simulate(
    build: Callable[[], Protocol], n: int, s: int, attack: str, seed: int, steps: int = 20, away: int | None = None
) -> Run:
    """Run `steps` steps; up to n - 2s - 1 honest workers are away at the same time, or `away` of them."""
    spare = max(n - 2 * s - 1, 0)
    return Simulation(build(), n, s, attack, seed, steps, spare if away is None else away).result()
