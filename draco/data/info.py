"""The facts of a data set, and the values handed from its original files to its prepared folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]  # the keys are PARTS
PARTS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before its files are on this machine."""

    shape: tuple[int, int, int]  # (c, h, w)
    classes: int
    train: int  # samples
    test: int
    mean: tuple[float, ...]  # of each channel over the training images, pixels in 0..1
    std: tuple[float, ...]
    augment: bool  # whether `batch` can crop and flip its images
    source: str  # where it comes from
    convert: Callable[["Request"], Arrays]  # makes the arrays from the original files
    originals: tuple[tuple[str, ...], ...] = ()  # the files that make a full set: any one of these groups
    installed: Path | None = None  # where a system package puts the originals
    digests: Mapping[str, str] = field(default_factory=dict)  # part -> sha256 of its file, unpacked, in the format IDX

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each split."""
        return {"train": self.train, "test": self.test}


class Request(NamedTuple):
    """What a conversion gets."""

    name: str
    info: DatasetInfo
    root: Path  # the folder of all data sets
    source: Path | None  # a folder with the original files; None: download them, or nothing is needed
    scratch: Path  # an empty folder that is removed afterwards


def name_parts(splits: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> Arrays:
    """Return [(train images, train labels), (test images, test labels)] as contiguous arrays of the final types."""
    (train_images, train_labels), (test_images, test_labels) = splits
    arrays = zip(PARTS, (train_images, train_labels, test_images, test_labels), strict=True)
    types = (np.uint8, np.int64) * 2
    return {part: np.ascontiguousarray(array, dtype=kind) for (part, array), kind in zip(arrays, types, strict=True)}
