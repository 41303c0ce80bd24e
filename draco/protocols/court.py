"""The court: who has been proven to lie, who may still be asked, and how many may still lie.

Facts that proofs rest on: honest workers claim the same of a pair; of the workers that are not expelled at most `lies`
lie. So what lies + 1 of them claim is the truth, and whoever claimed something else has lied. Lateness is never a
proof. Source: Gupta & Vaidya, randomized reactive redundancy, arXiv:1912.09528.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from draco.errors import TrainingError, WorkerError


class Proof(NamedTuple):
    """Why a worker was expelled: what it claimed of a pair, and what is true; plain values, for checkpoints."""

    step: int
    partition: int
    claimed: str  # digest in hexadecimal, or what was wrong with what it sent
    true: str  # digest in hexadecimal; empty where what it sent was wrong by itself


@dataclass
class Court:
    """What is known of the workers, ranks 1..n. The driver keeps `absent`, `lacking` and `generator` up to date."""

    workers: int  # n
    adversaries: int  # s
    expelled: dict[int, Proof] = field(default_factory=dict)
    watched: set[int] = field(default_factory=set)  # did not open a commitment once: no proof, but no trust either
    absent: set[int] = field(default_factory=set)  # gone, or still owing an old answer: not to be asked now
    lacking: set[int] = field(default_factory=set)  # have not the model of the step before
    nodes: Sequence[str] | None = None  # the machine of worker 1..n; None: they share one
    generator: np.random.Generator = field(default_factory=np.random.default_rng)  # of the run's secret, for this step

    @property
    def lies(self) -> int:
        """How many of those who are not expelled may lie."""
        return max(self.adversaries - len(self.expelled), 0)

    @property
    def standing(self) -> list[int]:
        """The workers that are not expelled."""
        return [rank for rank in range(1, self.workers + 1) if rank not in self.expelled]

    @property
    def present(self) -> list[int]:
        """The workers that may be asked now."""
        return [rank for rank in self.standing if rank not in self.absent]

    def shuffled(self, ranks: list[int]) -> list[int]:
        """Return the same workers in an order that none of them can foresee."""
        return [int(rank) for rank in self.generator.permutation(ranks)]

    def expel(self, rank: int, proof: Proof) -> None:
        """Expel a worker that has been proven to lie; its first proof counts.

        Raises:
            TrainingError: more have been proven to lie than the job tolerates.
        """
        self.expelled.setdefault(rank, proof)
        if len(self.expelled) > self.adversaries:
            liars = ", ".join(map(str, sorted(self.expelled)))
            raise TrainingError(
                f"workers {liars} have been proven to lie, and scheme.adversaries is {self.adversaries}: what others "
                "claim may be false too; raise scheme.adversaries"
            )

    def too_few(self, step: int, partition: int) -> WorkerError:
        """Return the error of a pair of which nobody is left who could be asked."""
        missing = ", ".join(str(rank) for rank in self.standing if rank in self.absent) or "none"
        return WorkerError(
            f"step {step}: nobody is left to ask about partition {partition}: {len(self.present)} of "
            f"{self.workers} workers can answer (expelled: {', '.join(map(str, sorted(self.expelled))) or 'none'}; "
            f"ended or late: {missing})"
        )
