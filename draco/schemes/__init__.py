"""The coding schemes by name: who computes what, what is sent, and how the server makes gradients of it."""

from draco.declaration import is_known, table
from draco.errors import DecodeError
from draco.given import as_count
from draco.protocols.rounds import Protocol
from draco.schemes.approximate import APPROXIMATE
from draco.schemes.cyclic import CYCLIC
from draco.schemes.cyclic_dft import CYCLIC_DFT
from draco.schemes.declaration import SchemeDeclaration, Sizes
from draco.schemes.detox import DETOX
from draco.schemes.election import ELECTION
from draco.schemes.in_rounds import CHECKED, REACTIVE, VERIFIED
from draco.schemes.own_scheme import adapt_scheme
from draco.schemes.placement import PLACEMENT
from draco.schemes.repetition import REPETITION
from draco.schemes.scheme import Decoded, Inspection, Scheme
from draco.schemes.solon import SOLON
from draco.schemes.uncoded import UNCODED

__all__ = [
    "CODES",
    "SCHEMES",
    "DecodeError",
    "Decoded",
    "Inspection",
    "Scheme",
    "SchemeDeclaration",
    "Sizes",
    "build",
    "build_protocol",
    "build_scheme",
    "options",
]

SCHEMES: dict[str, SchemeDeclaration] = table(
    adapt_scheme,
    UNCODED,
    REPETITION,
    CYCLIC,
    CYCLIC_DFT,
    DETOX,
    PLACEMENT,
    APPROXIMATE,
    ELECTION,
    SOLON,
    REACTIVE,
    VERIFIED,
    CHECKED,
)
CODES = {name: declared for name, declared in SCHEMES.items() if not declared.expels}  # of one round


def options(name: str) -> tuple[str, ...]:
    """Return the names of the arguments that the scheme takes besides workers and adversaries."""
    if not is_known(SCHEMES, name):
        raise ValueError(f"unknown scheme {name!r}, must be one of {', '.join(SCHEMES)}")
    scheme = SCHEMES[name]
    return (*(option for option, declared in scheme.options.items() if declared.argument), *scheme.supplied)


def build_scheme(name: str, *, workers: int, adversaries: int, **settings: object) -> Scheme:
    """Return the scheme for n workers of which up to s are adversaries.

    `scheme.partitions(row)` says which of the k partitions of a batch a row computes, and `scheme.encode(row,
    gradients)` what it sends for their gradients. `scheme.decode(replies)` makes gradients of what arrived, and names
    the rows that lied. Sources: docs/library.md, and `help` of `draco.schemes.SCHEMES[name].function`.

    Args:
        name: as in jobs, such as "cyclic" or "repetition"; an unknown one is answered with all.
        workers: n, 1 or more.
        adversaries: s, 0 or more.
        settings: the scheme's own options, such as `redundancy=5`; docs/jobs.md has them with their bounds.

    Raises:
        ValueError: there is no such scheme or option, or the scheme cannot keep its promise for these numbers.
    """
    allowed = options(name)
    if unknown := sorted(set(settings) - set(allowed)):
        known = ", ".join(allowed) or "none"
        raise ValueError(f"{name}: unknown option {', '.join(unknown)}; its options are: {known}")
    SCHEMES[name].require_kinds(settings)
    workers, adversaries = as_count(name, "workers", workers), as_count(name, "adversaries", adversaries)
    if workers < 1:
        raise ValueError(f"{name}: workers is {workers}, must be 1 or more")
    if adversaries < 0:
        raise ValueError(f"{name}: adversaries is {adversaries}, must be 0 or more")
    return SCHEMES[name](workers=workers, adversaries=adversaries, **settings)


def build_protocol(name: str, *, workers: int, adversaries: int, **settings: object) -> Protocol | None:
    """Return the protocol of a scheme's steps; None where a step is one round, and `build_scheme` has all of it.

    Args:
        name: as in jobs.
        workers: n.
        adversaries: s.
        settings: all options of the scheme that are given, those too that `build_scheme` does not take.

    Raises:
        ValueError: the scheme cannot keep its promise for these numbers.
    """
    declared = SCHEMES[name]
    return declared.protocol and declared.protocol(workers=workers, adversaries=adversaries, **settings)


build = build_scheme  # as the trainer calls it: `schemes.build`
