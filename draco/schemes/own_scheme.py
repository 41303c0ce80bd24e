"""A user's own schemes, named by their path: a function that builds a `Scheme`, or a declaration as ours are.

What is built is tried with a few numbers at once: each row's encoder, and the decoder on what they give. In a run every
reply and everything that is decoded is looked at.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from draco.errors import DecodeError, OwnCodeError
from draco.lazy import Tensor, torch
from draco.own_function import declared, default, defined, read, require_tensor, unchanged, watched
from draco.schemes.declaration import SchemeDeclaration, Sizes
from draco.schemes.scheme import Decoded, Mask, Scheme

SCHEME = "a scheme is a function (workers, adversaries, options) -> Scheme"
_HANDED = ("workers", "adversaries", "seed", "tail")
_SUPPLIED = {"seed": 0, "tail": 1}  # what the trainer supplies, where only the sizes are asked for
_TRIED = 16  # numbers in the gradients that a new scheme is tried with
_ROUNDING = 1e-4  # relative difference that is put down to float32


def adapt_scheme(path: str, found: Any) -> SchemeDeclaration:
    """Return the declaration of a user's own scheme.

    A function's sizes are those of what it builds. Its parameter `tolerance` is the scheme's; `seed` and `tail` are
    supplied by the trainer; all others are options.

    Raises:
        OwnCodeError: it is none.
    """
    scheme = declared(path, found, SchemeDeclaration, SCHEME)
    if scheme is not None:
        return replace(scheme, function=_Building(path, scheme.function, scheme.function, scheme.dtype, scheme))
    signature = read(path, found, SCHEME, 0, _HANDED)
    build = _Building(path, found, lambda **arguments: found(**signature.of(arguments)), "float32")
    supplied = tuple(name for name in _SUPPLIED if name in signature.handed)

    def sizes(workers: int, adversaries: int, **options: Any) -> Sizes:
        given = {name: _SUPPLIED[name] for name in supplied}
        made = build(workers=workers, adversaries=adversaries, **given, **options)
        replies, _ = _replies(made)
        return Sizes(made.assignment.shape[1], len(made.decode(replies, seed=1).gradients), made.bad)

    return SchemeDeclaration(
        name=path,
        function=build,
        text=f"your own: {path}",
        options=signature.options,
        sizes=sizes,
        least=lambda s, given: 1,
        tolerance=float(default(found, "tolerance") or 0.0),
        supplied=supplied,
    )


class _Building:
    """The building of a user's own scheme, watched and tried."""

    def __init__(
        self, path: str, source: Any, function: Any, dtype: str, says: SchemeDeclaration | None = None
    ) -> None:
        """`source` is the user's own, which messages name; `dtype` is that of the replies, `says` its declaration."""
        self._path, self._source, self._function, self._dtype, self._says = path, source, function, dtype, says

    def __call__(self, *, workers: int, adversaries: int, **options: Any) -> Scheme:
        """Return the scheme, its parts watched.

        Raises:
            OwnCodeError: it cannot be built, or is none.
            ValueError: as the user's own function says of an option.
        """
        with watched(self._path):
            made = self._function(workers=workers, adversaries=adversaries, **options)
        if not isinstance(made, Scheme):
            raise self._fault(f"returned {type(made).__name__}; {SCHEME}")
        self._check(made, workers, adversaries)
        scheme = self._watched(made)
        self._try(scheme)
        if self._says is not None:
            given = {name: options[name] for name in self._says.arguments(options)}
            self._compare(scheme, self._says.sizes(workers, adversaries, **given))
        return scheme

    def _compare(self, made: Scheme, said: Sizes) -> None:
        replies, _ = _replies(made)
        found = Sizes(made.assignment.shape[1], len(made.decode(replies, seed=1).gradients), made.bad)
        if found != said:
            raise self._fault(f"its sizes are {tuple(said)} as declared, and {tuple(found)} as built: k, m, bad")

    def _check(self, made: Scheme, workers: int, adversaries: int) -> None:
        assignment = made.assignment
        if (made.workers, made.adversaries) != (workers, adversaries):
            raise self._fault(f"is for {made.workers} workers and {made.adversaries} adversaries, not as asked for")
        if not isinstance(assignment, np.ndarray) or assignment.dtype != np.bool_ or assignment.ndim != 2:
            raise self._fault("assignment must be an array (n, k) of bool")
        if (
            len(assignment) != workers
            or not assignment.size
            or not (assignment.any(0).all() and assignment.any(1).all())
        ):
            raise self._fault("assignment must give every one of n rows a partition, and every partition a row")
        if made.weights is not None and np.shape(made.weights) != assignment.shape:
            raise self._fault(f"weights must be {assignment.shape} as the assignment, or None")
        if str(made.dtype) != f"torch.{self._dtype}":
            raise self._fault(f"replies are {made.dtype}, must be {self._dtype}; a SchemeDeclaration says otherwise")

    def _watched(self, made: Scheme) -> Scheme:
        path, source = self._path, self._source

        def encode(row: int, gradients: Tensor) -> Tensor:
            with unchanged(path, source, "the gradients", gradients):
                reply: Tensor = made.encoder(row, gradients)
            shape = (made.elements(gradients.shape[1]),)
            require_tensor(path, source, reply, f"row {row}'s reply", shape, made.dtype)
            return reply

        def decode(replies: Tensor, here: Mask, seed: int, inspection: Any) -> Decoded:
            with unchanged(path, source, "the replies", replies):
                decoded = made.decoder(replies, here, seed, inspection)
            if not isinstance(decoded, Decoded) or not isinstance(decoded.gradients, torch.Tensor):
                raise self._fault("its decoder must return Decoded(gradients, suspects)")
            gradients, suspects = decoded.gradients, decoded.suspects
            if gradients.ndim != 2 or not gradients.numel() or gradients.dtype != torch.float32:
                found = f"{tuple(gradients.shape)} {gradients.dtype}"
                raise self._fault(f"its decoder returned gradients {found}; they must be (m, d) float32")
            if gradients.device != replies.device:
                raise self._fault(
                    f"its decoder returned gradients on {gradients.device}, of replies on {replies.device}; make "
                    "tensors with device=replies.device"
                )
            if any(type(row) is not int or not 0 <= row < made.workers for row in suspects):
                raise self._fault(f"its decoder's suspects are {suspects!r}; must be rows, 0 to {made.workers - 1}")
            return decoded

        return made._replace(name=path, encoder=encode, decoder=decode)

    def _try(self, made: Scheme) -> None:
        replies, gradients = _replies(made)
        try:
            decoded = made.decode(replies, seed=1)
        except DecodeError as error:
            raise self._fault(f"its decoder fails on what its own encoder sends: {error}") from error
        if decoded.gradients.shape[1] < gradients.shape[1]:
            found = f"{decoded.gradients.shape[1]} of {gradients.shape[1]} numbers"
            raise self._fault(f"its decoder leaves {found} of each gradient")
        if made.weights is None or replies.shape != (made.workers, _TRIED) or not replies.is_floating_point():
            return
        for row in range(made.workers):  # where weights are given, the trainer may encode by them
            weighed = torch.from_numpy(np.asarray(made.weights, np.float64)[row]).float() @ gradients
            if not torch.allclose(weighed, replies[row], rtol=_ROUNDING, atol=_ROUNDING * float(gradients.abs().max())):
                raise self._fault(f"row {row}'s reply is not what its weights say; give weights=None, or those it uses")

    def _fault(self, what: str) -> OwnCodeError:
        return OwnCodeError(f"{self._path}{defined(self._source)}: {what}")


def _replies(made: Scheme) -> tuple[Tensor, Tensor]:
    """Return what every row sends (n, e) for a few gradients (k, d), and these."""
    k = made.assignment.shape[1]
    gradients = torch.randn(k, _TRIED, generator=torch.Generator().manual_seed(k))
    return torch.stack([made.encode(row, gradients[made.assignment[row]]) for row in range(made.workers)]), gradients
