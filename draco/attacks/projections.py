"""The projections that decoders draw from a step's seed, by scheme, until the schemes declare them as `project`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from draco.lazy import Tensor, torch


def _cyclic(seed: int, elements: int) -> Tensor:
    from draco.schemes.projection import dense, draw

    return dense(draw(seed, elements, torch.device("cpu")), elements)


def _cyclic_dft(seed: int, elements: int) -> Tensor:
    from draco.schemes.cyclic_dft import projection

    return projection(seed, elements)[None]


PROJECTIONS: Mapping[str, Callable[[int, int], Tensor]] = {"cyclic": _cyclic, "cyclic_dft": _cyclic_dft}
