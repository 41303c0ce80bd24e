"""What an attack declares: its options, what a Byzantine worker is presumed to know, and what becomes of its frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from draco.declaration import Declaration
from draco.lazy import Tensor
from draco.schemes.scheme import SchemeDeclaration


def _suits_all(scheme: SchemeDeclaration) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class AttackDeclaration(Declaration):
    """What an attack declares. Its function maps (reply (e,), *, magnitude, generator, scene) to what is sent (e,)."""

    strength: str | None = None  # the option whose value the function gets as `magnitude`; None: it needs none
    # (workers, Byzantine ones) -> the strength where the option is null; a ValueError says why there is none.
    usual_strength: Callable[[int, int], float] | None = None
    informed: bool = False  # Byzantine workers know all rows and the last step's seed: the server tells every worker
    needs_honest: bool = False  # it is made of what honest workers send, so at least one must be honest
    truthful: bool = False  # what arrives is true, so that a server that suspects nobody has missed nothing
    # Which rows Byzantine workers take unless the job says otherwise: None any, "neighbours" or whole groups, or just
    # the "majorities" of groups.
    placed: Literal["neighbours", "majorities"] | None = None
    sent: float = 1.0  # share of the frame's bytes that is sent; 0: nothing ever comes
    delays: bool = False  # it sends after the seconds of its option `delay_s`
    lasting: bool = False  # it cannot end again, nor go from worker to worker
    fault: Callable[[SchemeDeclaration], str | None] = _suits_all  # why it makes no sense against a scheme

    def __call__(self, reply: Tensor, **arguments: Any) -> Tensor:
        """Return what is sent in place of the reply (e,)."""
        sent: Tensor = self.function(reply, **arguments)
        return sent
