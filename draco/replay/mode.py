"""What both sides run a computation in: it sees each product, forward and backward, and nothing else."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Self

import torch

from draco.replay.products import Places


class ProductMode:
    """Hands each product that transcripts have to `product`, in the thread that has entered it."""

    def __enter__(self) -> Self:
        kernels = import_module("draco.replay.kernels")  # at the first use, as it takes 40 milliseconds
        self._running = kernels.RUNNING
        self._before = self._running.set(self)
        self._guard = torch._C._IncludeDispatchKeyGuard(kernels.KEY)
        self._guard.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        self._guard.__exit__(*error)
        self._running.reset(self._before)

    def product(self, op: Any, args: Sequence[Any], options: dict[str, Any], found: Places) -> Sequence[Any]:
        """Return the outputs of a product, of which `found` are the places."""
        raise NotImplementedError
