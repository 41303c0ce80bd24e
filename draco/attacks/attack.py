"""The declaration of an attack: its options, what a Byzantine worker is presumed to know, what becomes of its frame.

`ATTACKS[name](reply, magnitude=..., generator=..., scene=...)` maps what an honest worker would send, (e,), to what is
sent, (e,): a new tensor of the reply's dtype on its device. The reply is not changed. `magnitude` is the attack's
strength, `generator` the worker's own, fresh at every step, and `scene` what else it may know (see `scene.Scene`).
Such a function is pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from draco.declaration import Declaration, Option
from draco.lazy import Tensor
from draco.schemes import SchemeDeclaration


def _suits_all(scheme: SchemeDeclaration) -> str | None:
    del scheme
    return None


@dataclass(frozen=True, kw_only=True)
class AttackDeclaration(Declaration):
    """What an attack declares. Its function maps (reply (e,), *, magnitude, generator, scene) to what is sent (e,)."""

    strength: str | None = None  # the option whose value the function gets as `magnitude`; None: it needs none
    # (workers, Byzantine ones) -> the strength where the option is null; a ValueError says why there is none.
    usual_strength: Callable[[int, int], float] | None = None
    informed: bool = False  # Byzantine workers know all rows and the last step's seed: the server tells every worker
    # It is made of the numbers that its worker would honestly send. Where not, nobody computes them: the function gets
    # NaN in their place, of the same shape, dtype and device.
    own: bool = True
    needs_honest: bool = False  # it is made of what honest workers send, so at least one must be honest
    truthful: bool = False  # what arrives is true, so that a server that suspects nobody has missed nothing
    # Which rows Byzantine workers take unless the job says otherwise: None any, "neighbours" or whole groups, or just
    # the "majorities" of groups.
    placed: Literal["neighbours", "majorities"] | None = None
    sent: float = 1.0  # share of the frame's bytes that is sent; 0: nothing ever comes
    delays: bool = False  # it sends later, as its options `delay` and `delay_s` say
    lasting: bool = False  # it cannot end again, nor go from worker to worker
    fault: Callable[[SchemeDeclaration], str | None] = _suits_all  # why it makes no sense against a scheme

    def __call__(self, reply: Tensor, **arguments: Any) -> Tensor:
        """Return what is sent in place of the reply (e,)."""
        sent: Tensor = self.function(reply, **arguments)
        return sent

    def magnitude(self, given: Mapping[str, Any], workers: int, byzantine: int) -> float:
        """Return the strength that the given options ask for; 1 for an attack that needs none.

        Raises:
            ValueError: the strength is left to the attack, which has none for so many workers and Byzantine ones.
        """
        if self.strength is None:
            return 1.0
        value = given.get(self.strength)
        if value is None:
            value = self.options[self.strength].default
        if value is None and self.usual_strength is not None:
            value = self.usual_strength(workers, byzantine)
        return float(value)

    def others(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the given options that the function takes besides its strength."""
        return {name: value for name, value in self.arguments(given).items() if name != self.strength}

    def sent_bytes(self, length: int) -> int | None:
        """Return how many bytes of a frame are sent; None: no message."""
        return int(self.sent * length) or None


def magnitude(default: float, text: str) -> dict[str, Option]:
    """Return the option `magnitude`, which many attacks have, each with its own default and meaning."""
    return {"magnitude": Option(float, default, text, gt=0.0, le=1e30)}
