"""The checker's side: run the computation again, with the products of the transcript where they pass their check."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from draco.replay import convolutions, matrices
from draco.replay.mode import ProductMode
from draco.replay.products import Places, from_numbers
from draco.replay.residual import Equation, Secrets, residual, whole_residual
from draco.replay.tolerance import default_tolerance
from draco.replay.verdict import CheatError, Verdict

T = TypeVar("T")
Outputs = Sequence[Any]  # tensors, or None where an output was not asked for
Check = Callable[[Outputs, Sequence[Any], Any, Secrets], Iterator[Equation]]
aten = torch.ops.aten

_CHECKS: dict[Any, Check] = {
    aten.mm.default: matrices.check_mm,
    aten.bmm.default: matrices.check_bmm,
    aten.addmm.default: matrices.check_addmm,
    aten.baddbmm.default: matrices.check_baddbmm,
    aten.convolution.default: convolutions.check_convolution,
    aten.convolution_backward.default: convolutions.check_convolution_backward,
}


class _Checking(ProductMode):
    """Takes products from a transcript where they pass their check."""

    def __init__(self, transcript: Tensor, generator: torch.Generator, tolerance: float | None, thorough: bool) -> None:
        super().__init__()
        self.transcript, self.tolerance, self.thorough = transcript, tolerance, thorough
        self.numbers = len(transcript)
        self.secrets = Secrets(generator)
        self.used, self.products = 0, 0
        self.worst, self.where = 0.0, ""
        self.cheat: CheatError | None = None

    def product(self, op: Any, args: Sequence[Any], options: dict[str, Any], found: Places) -> Outputs:
        """Return the outputs of a product as they came, or the checker's own where these are not finite.

        The checker computes a product that fails. That costs a liar its identity, and the checker little.
        """
        self.products += 1
        try:
            came = self._next(op, found)
            return self._passed(op, args, options, came)
        except CheatError as cheat:  # the computation's own code may catch it, or make another error of it
            self.cheat = self.cheat or cheat
            raise

    def _passed(self, op: Any, args: Sequence[Any], options: dict[str, Any], came: Outputs) -> Outputs:
        whole: Outputs = ()
        for equation in _CHECKS[op](came, args, options, self.secrets):
            tolerance = default_tolerance(equation.inner) if self.tolerance is None else self.tolerance
            size = math.inf if self.thorough else residual(equation, tolerance)
            if not size <= tolerance:
                if not whole:
                    own = op(*args, **options)
                    whole = own if isinstance(own, tuple) else (own,)
                    if not all(bool(part.isfinite().all()) for part in whole if part is not None):
                        return whole  # the truth overflows: what came cannot be judged, and is not used
                size = whole_residual(equation, came[equation.output], whole[equation.output])
                if not size <= tolerance:
                    raise self._cheat(op, came[equation.output], equation, size, tolerance)
            if size > self.worst:
                self.worst, self.where = size, f"{_OUTPUTS[op][equation.output]}, product {self.products}"
        return came

    def _cheat(self, op: Any, came: Tensor, equation: Equation, size: float, tolerance: float) -> CheatError:
        what = f"{_OUTPUTS[op][equation.output]}, product {self.products}, {'x'.join(map(str, came.shape))}"
        if not bool(came.isfinite().all()):
            return CheatError(f"{what}: has numbers that are not finite, and the true ones are")
        return CheatError(f"{what}: is false by {size:.1e} of its size, and rounding stays below {tolerance:.1e}")

    def _next(self, op: Any, found: Places) -> Outputs:
        """Return the next products of the transcript, in the shapes that the checker's own operation has."""
        outputs: list[Tensor | None] = []
        for number, place in enumerate(found):
            if place is None:
                outputs.append(None)
                continue
            end = self.used + place.numbers
            if end > self.numbers:
                what = f"{_OUTPUTS[op][number]}, product {self.products}, {'x'.join(map(str, place.shape))}"
                raise CheatError(f"{what}: ends at number {end:,}, and the transcript has {self.numbers:,}")
            outputs.append(from_numbers(self.transcript[self.used : end], place))
            self.used = end
        return outputs


_OUTPUTS: dict[Any, tuple[str, ...]] = {  # how an output of an operation is called
    aten.mm.default: ("mm",),
    aten.bmm.default: ("bmm",),
    aten.addmm.default: ("addmm",),
    aten.baddbmm.default: ("baddbmm",),
    aten.convolution.default: ("convolution",),
    aten.convolution_backward.default: (
        "convolution_backward by its input",
        "convolution_backward by its weights",
        "convolution_backward by its bias",
    ),
}


def replay(
    compute: Callable[[], T],
    transcript: Tensor,
    *,
    generator: torch.Generator,
    tolerance: float | None = None,
    thorough: bool = False,
) -> tuple[T, Verdict]:
    """Run a computation again with the products of a transcript, each of them after its check.

    The result has the bits of the worker's, where the worker is honest and the platform the same. What `compute`
    changes besides, such as BatchNorm statistics, changes as at the worker; where this raises, only a part of it.

    Args:
        compute: the computation that the worker claims to have recorded; it must not depend on global random state.
        transcript: one flat float32 tensor as it came. Its memory is used, and operations in place may overwrite it.
        generator: secret, and not used before the transcript has come; one number of its seed says all.
        tolerance: the largest error of a row relative to its scale (residual.py); None: by the length of the sums,
            as `default_tolerance` has it.
        thorough: compute every product too, and compare it whole. It takes longer than the computation, and all who do
            it on alike machines come to the same end. A transcript that passes it passes every other replay.

    Raises:
        CheatError: no honest worker has sent this transcript: a product is false or not finite, or there are too few or
            too many numbers.
    """
    if transcript.dtype != torch.float32 or transcript.ndim != 1:
        raise CheatError(f"the transcript is {transcript.dtype} of {transcript.ndim} dimensions: must be float32 of 1")
    mode = _Checking(transcript.detach().contiguous(), generator, tolerance, thorough)
    try:
        with mode:
            result = compute()
    finally:
        if mode.cheat is not None:
            raise mode.cheat
    if mode.used != len(transcript):
        raise CheatError(f"the transcript has {len(transcript):,} numbers, and the computation has {mode.used:,}")
    return result, Verdict(mode.products, mode.worst, mode.where)
