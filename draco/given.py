"""The door of the library: what a caller gives as rows of numbers, or as a count, made what the code behind it takes.

Tensors pass as they are. numpy arrays, lists of vectors and lists of lists become tensors. All else is a ValueError.
`of_its_kind` is the way back, for those whose users get out what they put in.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from draco.lazy import Tensor, torch


def as_tensor(owner: str, what: str, given: Any) -> Tensor:
    """Return numbers as a dense tensor without a gradient; a tensor or array is not copied where it need not be.

    Whole numbers become float64, and so do lists of Python's numbers.

    Raises:
        ValueError: they are something else, or of unlike lengths. Names `owner` and `what`.
    """
    if not isinstance(given, torch.Tensor):
        given = _converted(owner, what, given)
    if given.layout is not torch.strided:
        raise ValueError(f"{owner}: {what} are a sparse tensor; make it dense")
    tensor: Tensor = given.detach()
    whole = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype not in (torch.bool, torch.uint8)
    return tensor.double() if whole else tensor


def of_its_kind(given: Any, made: Tensor) -> Any:
    """Return what was made of numbers in the kind that they were given in.

    That is a tensor for a tensor or a list of tensors, an array for an array or a list of arrays, and lists of Python's
    numbers for lists of them. An array shares the memory of `made`.
    """
    if isinstance(given, torch.Tensor) or (
        not isinstance(given, np.ndarray) and any(isinstance(row, torch.Tensor) for row in given)
    ):
        return made
    arrays = isinstance(given, np.ndarray) or any(isinstance(row, np.ndarray) for row in given)
    return made.numpy() if arrays else made.tolist()


def as_count(owner: str, what: str, given: Any) -> int:
    """Return a whole number; a bool is none.

    Raises:
        ValueError: it is something else. Names `owner` and `what`.
    """
    try:
        if isinstance(given, (bool, np.bool_)):
            raise TypeError
        return operator.index(given)
    except TypeError:
        raise ValueError(f"{owner}: {what} must be a whole number, got {given!r}") from None


def _converted(owner: str, what: str, given: Any) -> Tensor:
    """Return an array, or a list of vectors or lists, as a tensor."""
    described = f"{owner}: {what} are a {type(given).__name__}"
    if isinstance(given, np.ma.MaskedArray) or not isinstance(given, (np.ndarray, Sequence)) or isinstance(given, str):
        raise ValueError(f"{described}; they must be a tensor, an array or a list")
    if not isinstance(given, np.ndarray) and any(isinstance(row, torch.Tensor) for row in given):
        kinds = {tuple(getattr(row, word, None) for word in ("shape", "dtype", "layout", "device")) for row in given}
        if len(kinds) > 1 or given[0].layout is not torch.strided:
            raise ValueError(f"{described} of unlike rows; they must be dense tensors of one shape and dtype")
        return torch.stack([row.detach() for row in given])
    try:
        array = np.asarray(given)
    except (ValueError, TypeError):
        raise ValueError(f"{described} of unlike rows; they must be of one length") from None
    if array.dtype.kind not in "buifc" or array.dtype.itemsize // (1 + (array.dtype.kind == "c")) > 8:
        raise ValueError(f"{described} of {array.dtype}; they must be of numbers that tensors hold")
    # torch takes arrays of the machine's byte order and of increasing addresses, and warns of read-only ones.
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
