"""A model as a value: its builder, and what a job needs to know of it before it is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, int, int]  # (c, h, w)


class Size(NamedTuple):
    """How many numbers a model has."""

    parameters: int  # p
    statistics: int = 0  # b: mean and variance of every channel of its BatchNorm layers


class Model(NamedTuple):
    """One entry of MODELS."""

    build: Callable[[Shape, int], nn.Module]  # (shape, classes) -> module with unspecified or global-RNG weights
    smallest: int  # least height and width of an image
    batch_norm: bool  # whether it has BatchNorm layers, which need 2 samples in a partition
    size: Callable[[Shape, int], Size] | None = None  # (shape, classes) -> what `build` gives, counted without torch
