"""A user's own attacks, named by their path: a plain function, or a declaration as ours are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from draco.attacks.attack import AttackDeclaration
from draco.declaration import Option
from draco.lazy import Tensor
from draco.own_function import declared, default, read, require_tensor, unchanged

ATTACK = "an attack is a function (reply (e,), *, magnitude, generator, scene, options) -> (e,)"
_HANDED = ("magnitude", "generator", "scene")


def adapt_attack(path: str, found: Any) -> AttackDeclaration:
    """Return the declaration of a user's own attack.

    A function takes what it needs of `magnitude`, which is then an option of the job, `generator` and `scene`. One that
    takes `scene` is presumed to know everything, so that the server tells its workers the rows of all.

    Raises:
        OwnCodeError: it is none.
    """
    attack = declared(path, found, AttackDeclaration, ATTACK)
    if attack is not None:
        return replace(attack, function=_checked(path, attack.function, attack.function))
    signature = read(path, found, ATTACK, 1, _HANDED)

    def function(reply: Tensor, **arguments: Any) -> Any:
        return found(reply, **signature.of(arguments))

    strong = "magnitude" in signature.handed
    usual = default(found, "magnitude")
    strength = {"magnitude": Option(float, 1.0 if usual is None else usual, "Its strength.", gt=0.0, le=1e30)}
    return AttackDeclaration(
        name=path,
        function=_checked(path, found, function),
        text=f"your own: {path}",
        options={**(strength if strong else {}), **signature.options},
        strength="magnitude" if strong else None,
        informed="scene" in signature.handed,
    )


def _checked(path: str, source: Any, function: Any) -> Any:
    """Return a function that is watched; `source` is the user's own, which messages name."""

    def called(reply: Tensor, **arguments: Any) -> Tensor:
        with unchanged(path, source, "the reply", reply):
            made = function(reply, **arguments)
        require_tensor(path, source, made, "what is sent", tuple(reply.shape), reply.dtype)
        sent: Tensor = made
        return sent

    return called
