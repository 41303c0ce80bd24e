"""Who drew from a global random generator: the line of a user's code, and the function that it called.

This is a second look, taken only where a generator has moved, as it makes the call several times slower. It repeats the
call under two watches. One compares torch's generator before and after each of torch's operations (a
`TorchDispatchMode`), and so knows the function. The other compares the generators after each line of the user's code
(`sys.settrace`), and so finds numpy and Python's `random` too.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from draco import own
from draco.tasks.first_check import states

_MOST = 5  # places that are told

Place = tuple[str, int]  # a file and a line


def drawn(call: Callable[[], Any], moved: Sequence[str], model: nn.Module | None = None) -> list[str]:
    """Repeat a call and return who drew, a clause for each place: `my_task.py, line 41: dropout() draws from ...`.

    Args:
        call: what drew. What it raises is left to whoever called it before.
        moved: the generators that it moved, as `states.generators` names them.
        model: whose modules are named by their paths.
    """
    names = {id(module): name for name, module in model.named_modules() if name} if model is not None else {}
    operations, lines = _Operations(names), _Lines(moved)
    try:
        with operations, lines.watching():
            call()
    except Exception:  # an operation that cannot be watched; what was seen until then is told
        operations.seen.setdefault(None, "")
    found: dict[str, None] = {}
    of_torch = {where for where in operations.seen if where is not None}
    for where, what in operations.seen.items():
        if what:
            found[f"{_said(where)}{what} draws from torch's global generator"] = None
    for (where, generator), text in lines.seen.items():
        if generator != "torch's" or where not in of_torch:
            found[f"{_said(where)}`{text}` draws from {generator} global generator"] = None
    return [*found][:_MOST]


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which of torch's operations move torch's global generator, and who called them."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names
        self.seen: dict[Place | None, str] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: nothing is compiled here, and to import the compiler for it takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = torch.get_rng_state()
        result = func(*args, **(kwargs or {}))
        if not torch.equal(before, torch.get_rng_state()):
            where, what = self._caller(func.name(), sys._getframe(1))
            self.seen.setdefault(where, what)
        return result

    def _caller(self, operation: str, frame: FrameType | None) -> tuple[Place | None, str]:
        """Return the innermost line of the user's own, and what it called: a module, a function or the operation."""
        what = f"torch.{operation.removeprefix('aten::').split('.')[0]}"
        module = function = None
        own_frame = _innermost(frame)
        while frame is not None and frame is not own_frame:
            owner = frame.f_locals.get("self")
            if module is None and isinstance(owner, nn.Module):
                name = self.names.get(id(owner))
                module = f"{type(owner).__name__}{f' (module {name})' if name else ''}"
            if frame.f_code.co_filename.endswith("torch/nn/functional.py"):
                function = f"F.{frame.f_code.co_name}"
            frame = frame.f_back
        where = None if own_frame is None else (own_frame.f_code.co_filename, own_frame.f_lineno)
        return where, module or function or what


class _Lines:
    """Notes after which lines of the user's own code a generator has moved."""

    def __init__(self, moved: Sequence[str]) -> None:
        self.moved = moved
        self.seen: dict[tuple[Place, str], str] = {}
        self._last: Place | None = None
        self._states: dict[str, Any] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the lines that run inside."""
        before = sys.gettrace()
        self._states = states.generators()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if _is_own(frame.f_code.co_filename) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        now = states.generators()
        for generator in states.changed(self._states, now):
            if generator in self.moved and self._last is not None:
                text = linecache.getline(*self._last).strip()
                self.seen.setdefault((self._last, generator), text)
        self._states = now
        above: FrameType | None = frame
        if event == "return":
            above = _innermost(frame.f_back)
        self._last = None if above is None else (above.f_code.co_filename, above.f_lineno)
        return self._line


def _innermost(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame of the user's own; None where there is none before those of the check."""
    while frame is not None and not _is_own(frame.f_code.co_filename):
        if frame.f_code.co_filename == drawn.__code__.co_filename and frame.f_code.co_name == drawn.__name__:
            return None
        frame = frame.f_back
    return frame


@cache
def _is_own(file: str) -> bool:
    return own.is_own(file)


def _said(where: Place | None) -> str:
    return "" if where is None else f"{own.shown(where[0])}, line {where[1]}: "
