"""The synthetic data sets: class prototypes under noise, the same bytes everywhere."""

from typing import Any

import numpy as np
import numpy.typing as npt

from draco.data.info import Arrays, Request, name_parts

_SEED = 1803_09877 % 2**32  # the paper's arXiv number


def convert_synthetic(request: Request) -> Arrays:
    """Make a data set that can be learned: a smooth random prototype for each class, under strong noise.

    Integer arithmetic on numpy's RandomState, whose stream numpy promises never to change: the same bytes everywhere.
    Prototypes are blocks of 4x4 pixels in 112..143. The noise of a pixel is the sum of four uniform integers, with a
    standard deviation of 58: even the best classifier makes some errors.
    """
    info = request.info
    random = np.random.RandomState(_SEED)
    channels, height, width = info.shape
    coarse = random.randint(112, 144, size=(info.classes, channels, height // 4, width // 4))
    prototypes = coarse.repeat(4, axis=2).repeat(4, axis=3)
    return name_parts([_sample_synthetic(random, prototypes, count) for count in info.counts.values()])


def _sample_synthetic(
    random: np.random.RandomState, prototypes: npt.NDArray[Any], count: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Draw `count` noisy copies of the prototypes (classes, c, h, w), as nearly as many of each class as possible."""
    labels = random.permutation(np.arange(count) % len(prototypes))
    images = prototypes[labels].astype(np.int16)
    for _ in range(4):
        images += random.randint(-50, 51, size=images.shape, dtype=np.int16)
    return images.clip(0, 255), labels
