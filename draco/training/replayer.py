"""The server's replay of a pair: the vector that a worker's transcript makes, or what is wrong with the transcript."""

from __future__ import annotations

import secrets
import time

import torch
from torch import Tensor

from draco.errors import OwnCodeError
from draco.replay import CheatError, replay
from draco.replay.pays import advise, measure
from draco.training.build import Built
from draco.training.pair_worker import PairVectors
from draco.training.worker import build_vectors


class Replayer:
    """Replays pairs with a model of its own. The secret of a check is drawn after the transcript has come."""

    def __init__(self, built: Built) -> None:
        self._source = PairVectors(build_vectors(built.again()), built.format, built.job.task is not None)
        self.products = self._source.products

    def advice(self, model: Tensor, pairs: int, adversaries: int) -> str:
        """Return what replays come to for a job, measured now: of partition 0, with the parameters (p,)."""
        source = self._source
        source.load(1, model)
        source.use(1)
        out = torch.empty(source.vectors.elements)
        costs = measure(
            lambda: source.vectors.partition(1, 0, out), clock=time.perf_counter,
            generator=torch.Generator().manual_seed(secrets.randbits(63)), numbers=len(out), repeats=1,
        )  # fmt: skip
        return advise(costs, pairs=pairs, adversaries=adversaries).sentence

    def load(self, step: int, model: Tensor) -> None:
        """Take the parameters (p,) of a step."""
        self._source.load(step, model)

    def check(self, step: int, partition: int, transcript: Tensor) -> Tensor | str:
        """Return the vector (d,) of a pair, in memory of its own, or why no honest worker sent this transcript."""
        generator = torch.Generator().manual_seed(secrets.randbits(63))
        self._source.use(step)
        out = torch.empty(self._source.vectors.elements)
        try:
            replay(lambda: self._source.vectors.partition(step, partition, out), transcript, generator=generator)
        except CheatError as error:
            return str(error)
        except OwnCodeError as error:  # what is raised within a task's loss() is said to be the task's
            if isinstance(error.__cause__, CheatError):
                return str(error.__cause__)
            raise
        return out
