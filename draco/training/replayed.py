"""One replay of a pair, by the server or a verifier: the vector that a transcript makes, or what is wrong with it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from draco.errors import OwnCodeError
from draco.replay import CheatError, replay

if TYPE_CHECKING:
    from draco.training.pair_worker import PairVectors


def replayed(
    source: PairVectors, step: int, partition: int, transcript: Tensor, *, thorough: bool = False
) -> Tensor | str:
    """Return the vector (d,) of a pair, in memory of its own, or why no honest worker sent this transcript.

    The secret of the check is drawn now, after the transcript has come.

    Args:
        source: has the parameters of the step.
        step: of the pair.
        partition: of the pair.
        transcript: float32; its memory is used, and operations in place may overwrite it.
        thorough: compare every product whole, so that all who do find the same.
    """
    generator = torch.Generator().manual_seed(secrets.randbits(63))
    source.use(step)
    out = torch.empty(source.vectors.elements)
    try:
        replay(
            lambda: source.vectors.partition(step, partition, out), transcript, generator=generator, thorough=thorough
        )
    except CheatError as error:
        return str(error)
    except OwnCodeError as error:  # what is raised within a task's loss() is said to be the task's
        if isinstance(error.__cause__, CheatError):
            return str(error.__cause__)
        raise
    return out
