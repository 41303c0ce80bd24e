"""The uncoded scheme: worker i computes partition i, the server gets all n gradients and decodes nothing.

It is the baseline of Chen et al., DRACO, ICML 2018 (arXiv:1803.09877), section 4. Without redundancy no adversary is
removed here. All robustness is that of the aggregator that follows.
Shapes: n workers = k partitions = m gradients, d parameters.
"""

from __future__ import annotations

import numpy as np

from draco.errors import DecodeError
from draco.lazy import Tensor, torch
from draco.schemes.declaration import SchemeDeclaration, Sizes
from draco.schemes.scheme import Decoded, Inspection, Mask, Scheme


def _sizes(workers: int, adversaries: int) -> Sizes:
    if workers < adversaries:
        raise ValueError(f"uncoded: {adversaries} adversaries need at least as many workers, got {workers}")
    return Sizes(partitions=workers, gradients=workers, bad=adversaries)


def uncoded(*, workers: int, adversaries: int) -> Scheme:
    """Return the scheme of n workers that send every gradient as it is; at most s of them may fail to arrive."""
    _sizes(workers, adversaries)

    def decode(replies: Tensor, here: Mask, seed: int, inspection: Inspection | None) -> Decoded:
        missing = np.flatnonzero(~here)
        if len(missing) > adversaries:
            raise DecodeError(
                f"uncoded: rows {missing.tolist()} did not arrive; at most {adversaries} of {workers} may be missing"
            )
        return Decoded(replies if here.all() else replies[torch.from_numpy(np.flatnonzero(here))], ())

    return Scheme(
        name="uncoded",
        workers=workers,
        adversaries=adversaries,
        redundancy=1,
        assignment=np.eye(workers, dtype=np.bool_),
        weights=np.eye(workers),
        encoder=lambda row, gradients: gradients[0],
        decoder=decode,
        inspect=None,
        dtype=torch.float32,
        amplification=1.0,
        summary=f"uncoded: {workers} workers, redundancy 1, {workers} gradients to the aggregator, none removed here",
        bad=adversaries,
    )


UNCODED = SchemeDeclaration(
    name="uncoded",
    function=uncoded,
    text="no redundancy, every gradient as it is; robustness is the aggregator's",
    sizes=_sizes,
    least=lambda s, given: s,
    individual=True,
)
