"""The schemes whose steps take several rounds: what jobs are told of them. `draco/protocols/` has the protocols.

They cut the batch into k = n - s partitions, so that every worker computes one of them once s have been expelled.
"""

from __future__ import annotations

from typing import NoReturn

from draco.declaration import Option
from draco.protocols.checked import checked, require_one_form
from draco.protocols.reactive import reactive
from draco.protocols.verified import checked_verifiers, verified
from draco.schemes.declaration import SchemeDeclaration, Sizes, require_workers


def _no_code(**_: object) -> NoReturn:
    raise ValueError(
        "this scheme takes several rounds, and has no encode and decode: draco.schemes.build_protocol builds its steps"
    )


def _cut(workers: int, adversaries: int) -> Sizes:
    return Sizes(partitions=workers - adversaries, gradients=workers - adversaries)


def _reactive_sizes(workers: int, adversaries: int, **_: object) -> Sizes:
    require_workers("reactive", workers, adversaries)
    return _cut(workers, adversaries)


REACTIVE = SchemeDeclaration(
    name="reactive",
    function=_no_code,
    text="one copy more than may lie, digests, and expulsion of who lied: exact, and redundancy falls to 1",
    sizes=_reactive_sizes,
    protocol=reactive,
    expels=True,
)


def _verified_sizes(
    workers: int, adversaries: int, verifiers: int | None = None, delta: float | None = None, **_: object
) -> Sizes:
    require_workers("verified", workers, adversaries)
    checked_verifiers("verified", workers, adversaries, verifiers, delta, absent=adversaries)
    return _cut(workers, adversaries)


VERIFIED = SchemeDeclaration(
    name="verified",
    function=_no_code,
    text="one copy, and verifiers drawn after the upload, who undo a step and expel who lied: exact, or nearly surely",
    options={
        "verifiers": Option(
            int | None,
            None,
            "Verifiers of each partition, 1 to s; s is exact. null: the least that `delta` needs.",
            ge=0,
            le=4096,
        ),
        "delta": Option(
            float | None,
            None,
            "Instead of `verifiers`: the probability that any step of the run stays false, at most. null: 1e-6.",
            ge=0,
            lt=1,
        ),
    },
    sizes=_verified_sizes,
    protocol=verified,
    expels=True,
)


def _checked_sizes(
    workers: int,
    adversaries: int,
    sample: float | None = None,
    verifiers: int | None = None,
    delta: float | None = None,
    **_: object,
) -> Sizes:
    if workers <= adversaries:
        raise ValueError(f"checked: {adversaries} adversaries need at least {adversaries + 1} workers, got {workers}")
    require_one_form(sample, verifiers, delta)
    if verifiers is not None or delta is not None:
        checked_verifiers("checked", workers, adversaries, verifiers, delta, absent=0)
    return _cut(workers, adversaries)


CHECKED = SchemeDeclaration(
    name="checked",
    function=_no_code,
    text="one copy, with its matrix products, which the server or drawn workers check as they replay it: any s < n",
    options={
        "sample": Option(
            float | None,
            None,
            "The server replays only this part of the partitions, drawn after they came; not exact. null: all.",
            gt=0,
            le=1,
        ),
        "verifiers": Option(
            int | None,
            None,
            "Workers that are drawn to replay each partition instead of the server, 1 to s; s is exact. null: none.",
            ge=0,
            le=4096,
        ),
        "delta": Option(
            float | None,
            None,
            "Instead of `verifiers`: the probability that any step of the run is false, at most. null: none.",
            ge=0,
            lt=1,
        ),
    },
    sizes=_checked_sizes,
    least=lambda s, given: s + 1,
    protocol=checked,
    expels=True,
    replays=True,
)
