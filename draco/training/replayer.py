"""The server's replay of a pair: the vector that a worker's transcript makes, or what is wrong with the transcript."""

from __future__ import annotations

import secrets
import time

import torch
from torch import Tensor

from draco.replay.pays import advise, measure
from draco.training.build import Built
from draco.training.pair_worker import PairVectors
from draco.training.replayed import replayed
from draco.training.worker import build_vectors


class Replayer:
    """Replays pairs with a model of its own."""

    def __init__(self, built: Built) -> None:
        self._source = PairVectors(build_vectors(built.again()), built.format, built.job.task is not None)
        self.products = self._source.products
        self._scheme = built.job.scheme

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
        return advise(
            costs, pairs=pairs, adversaries=adversaries, sample=self._scheme.get("sample"),
            verifiers=self._scheme.get("verifiers"),
        ).sentence  # fmt: skip

    def load(self, step: int, model: Tensor) -> None:
        """Take the parameters (p,) of a step."""
        self._source.load(step, model)

    def check(self, step: int, partition: int, transcript: Tensor, thorough: bool = False) -> Tensor | str:
        """Return the vector (d,) of a pair, or why no honest worker sent this transcript; see `replayed`."""
        return replayed(self._source, step, partition, transcript, thorough=thorough)
