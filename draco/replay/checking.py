"""The checker's side: run the computation again, with the products of the transcript where they pass their check."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from draco.replay import convolutions, matrices
from draco.replay.products import Places, from_numbers, places
from draco.replay.residual import Secrets, residual, whole_residual
from draco.replay.verdict import CheatError, Verdict

T = TypeVar("T")
aten = torch.ops.aten
TOLERANCE = 1e-5

_CHECKS: dict[Any, Any] = {
    aten.mm.default: matrices.check_mm,
    aten.bmm.default: matrices.check_bmm,
    aten.addmm.default: matrices.check_addmm,
    aten.baddbmm.default: matrices.check_baddbmm,
    aten.convolution.default: convolutions.check_convolution,
    aten.convolution_backward.default: convolutions.check_convolution_backward,
}


class _Checking(TorchDispatchMode):
    def __init__(self, transcript: Tensor, generator: torch.Generator, tolerance: float) -> None:
        super().__init__()
        self.transcript, self.tolerance = transcript, tolerance
        self.secrets = Secrets(generator)
        self.used, self.products = 0, 0
        self.worst, self.where = 0.0, ""

    def __torch_dispatch__(
        self, op: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = places(op, args)
        if found is None:
            return op(*args, **(kwargs or {}))
        self.products += 1
        products = self._next(op, found)
        what = f"{op.overloadpacket.__name__}, product {self.products}"
        whole: Sequence[Tensor] | None = None
        for equation in _CHECKS[op](products, args, kwargs or {}, self.secrets):
            size = residual(equation, self.tolerance)
            if not size <= self.tolerance:
                if whole is None:
                    own = op(*args, **(kwargs or {}))
                    whole = own if isinstance(own, (tuple, list)) else (own,)
                size = self._second(what, equation, products, whole)
            if size > self.worst:
                self.worst, self.where = size, what
        if whole is not None and not all(bool(part.isfinite().all()) for part in whole if part is not None):
            products = list(whole)  # the truth is not finite: nothing of the transcript was checked
        return tuple(products) if len(products) > 1 else products[0]

    def _second(self, what: str, equation: Any, products: Sequence[Tensor], whole: Sequence[Tensor]) -> float:
        came, own = products[equation.output], whole[equation.output]
        if not bool(own.isfinite().all()):
            return 0.0
        size = whole_residual(equation, came, own)
        if size <= self.tolerance:
            return size
        shape = "x".join(map(str, came.shape))
        if not bool(came.isfinite().all()):
            raise CheatError(f"{what} of shape {shape} has numbers that are not finite")
        raise CheatError(
            f"{what} of shape {shape} is false: residual {size:.1e}, and rounding stays below {self.tolerance:.0e}"
        )

    def _next(self, op: Any, found: Places) -> list[Any]:
        products: list[Any] = []
        for place in found:
            if place is None:
                products.append(None)
                continue
            end = self.used + place.numbers
            if end > len(self.transcript):
                raise CheatError(
                    f"the transcript has {len(self.transcript)} numbers, and ends within "
                    f"{op.overloadpacket.__name__}, product {self.products}, which needs {end}"
                )
            products.append(from_numbers(self.transcript[self.used : end], place))
            self.used = end
        return products


def replay(
    compute: Callable[[], T], transcript: Tensor, *, generator: torch.Generator, tolerance: float | None = None
) -> tuple[T, Verdict]:
    """Run a computation again with the products of a transcript, after a check of each; return its result and a verdict."""
    mode = _Checking(transcript, generator, TOLERANCE if tolerance is None else tolerance)
    with mode:
        result = compute()
    if mode.used != len(transcript):
        raise CheatError(f"the transcript has {len(transcript)} numbers, and the computation has {mode.used}")
    return result, Verdict(mode.products, mode.worst, mode.where)
