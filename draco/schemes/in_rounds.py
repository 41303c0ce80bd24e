"""The schemes whose steps take several rounds: what jobs are told of them. `draco/protocols/` has the protocols.

They cut the batch into k = n - s partitions, so that every worker computes one of them once s have been expelled.
"""

from __future__ import annotations

from typing import NoReturn

from draco.protocols.reactive import reactive
from draco.schemes.declaration import SchemeDeclaration, Sizes, require_workers


def _no_code(**_: object) -> NoReturn:
    raise ValueError(
        "this scheme takes several rounds, and has no encode and decode: draco.schemes.build_protocol builds its steps"
    )


def _sizes(workers: int, adversaries: int, **_: object) -> Sizes:
    require_workers("scheme", workers, adversaries)
    return Sizes(partitions=workers - adversaries, gradients=workers - adversaries)


REACTIVE = SchemeDeclaration(
    name="reactive",
    function=_no_code,
    text="one copy more than may lie, digests, and expulsion of who lied: exact, and redundancy falls to 1",
    sizes=_sizes,
    protocol=reactive,
    in_rounds=True,
)
