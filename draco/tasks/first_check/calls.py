"""Calls of a task's own methods by the first check: what goes wrong in one becomes a sentence with file and line.

A sentence begins with task, method, file and line: `my_task.py:Digits: loss(), my_task.py, line 41: ...`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from draco import own
from draco.determinism import without_form
from draco.errors import OwnCodeError
from draco.tasks.first_check import draws, states
from draco.tasks.task import Task

Result = TypeVar("Result")
REMEDY = "use torch.nn.Dropout in the model, or the generator that augment() is given"
_OTHERWISE = "take another operation, or deterministic: false in the job"
REMEDY_OF_A_MODULE = "turn that off: only torch.nn.Dropout gets its masks from Draco"


class Setting(NamedTuple):
    """What a job says that a task is checked against."""

    name: str  # of the task, as the job names it
    seed: int
    batch_size: int  # B
    partitions: int  # k
    joined: bool = False  # partitions are joined, or cut, in one backward: rests on `per_sample`
    device: str = "cpu"
    labels_for: str = ""  # what of the job needs labels(): `data.split: by_class`
    flipped_for: str = ""  # what of the job needs flipped(): `attack: label_flip`
    again: bool = True  # samples("train") is fetched twice, and compared
    wide: bool = False  # the job computes in float64
    repeats: bool = True  # the same partition must have the same bits again; a GPU may be told that it need not
    drawn: tuple[str, ...] = ("*",)  # globs of the tensors that model() draws; the others come from a file


class Failed(Exception):  # noqa: N818  # never seen outside of the check
    """What was to be looked at is not there, and a fault says why."""


class Calls:
    """Calls the methods of one task and gathers faults and warnings. Global generators are left to `states.kept`."""

    def __init__(self, task: Task, setting: Setting) -> None:
        self.task, self.setting = task, setting
        self.faults: list[str] = []
        self.warnings: list[str] = []
        self.cause: BaseException | None = None  # the first error that user's code has raised
        self.model: nn.Module | None = None  # names modules
        self.draws = 0  # calls that drew from a global generator
        self.told: set[str] = set()  # the modules of which it is known that they draw

    def fault(self, method: str, text: str) -> None:
        """Note what is wrong with a method, at the line where it is defined."""
        self._note(self.faults, f"{self._head(method)}{self.defined(method)}: {text}")

    def fault_at(self, method: str, place: str, text: str) -> None:
        """Note what is wrong at a place, given as `, my_task.py, line 3`; where there is none, at the method."""
        self._note(self.faults, f"{self._head(method)}{place or self.defined(method)}: {text}")

    def warn(self, method: str, text: str) -> None:
        """Note what is doubtful about a method."""
        self._note(self.warnings, f"{self._head(method)}{self.defined(method)}: {text}")

    def fail(self, method: str, text: str) -> Failed:
        """Note a fault after which nothing more can be said of the method's result; to be raised."""
        self.fault(method, text)
        return Failed()

    def call(
        self,
        method: str,
        call: Callable[[], Result],
        *,
        about: Callable[[], str] = lambda: "",
        seeded: bool = False,
        grave: bool = True,
    ) -> Result:
        """Return what a call of user's code returns.

        Args:
            method: which of the task's methods it is about.
            call: may be called twice: where it has drawn, it is repeated under watch.
            about: what is said after an error, such as the shapes of the batch.
            seeded: it may draw from the global generators, which were seeded for it.
            grave: drawing is a fault, and no warning.

        Raises:
            Failed: it raised; a fault says what, and where.
        """
        generators, settings = states.generators(), states.settings()
        try:
            result = call()
        except Failed:
            raise
        except Exception as raised:
            # Where the trainer called it, it has put a sentence of its own around the error.
            error = raised.__cause__ if isinstance(raised, OwnCodeError) and raised.__cause__ else raised
            self.cause = self.cause or error
            where = own.place(error) or self.defined(method)
            text = f"{self._head(method)}{where}: {type(error).__name__}: {said(error)}{about()}"
            self._note(self.faults, text)
            raise Failed from raised
        if set_ := states.changed(settings, states.settings()):
            self.fault(method, f"it changes {', '.join(set_)} for the whole process; leave that as it is")
        moved = states.changed(generators, states.generators())
        if moved and not seeded:
            self.draws += 1
            self._blame(method, call, moved, self.faults if grave else self.warnings)
        return result

    def defined(self, method: str) -> str:
        """Return where a method of the task is defined, or its class, as `, my_task.py, line 3`."""
        for thing in (getattr(type(self.task), method, None), type(self.task)):
            try:
                file, line = inspect.getsourcefile(thing), inspect.getsourcelines(thing)[1]  # type: ignore[arg-type]
            except (TypeError, OSError):
                continue
            if file and own.is_own(file):
                return f", {own.shown(file)}, line {line}"
        return ""

    def _blame(self, method: str, call: Callable[[], Any], moved: Sequence[str], into: list[str]) -> None:
        found = draws.drawn(call, moved, self.model)
        if not found:
            generators = " and ".join(moved)
            found = [
                f"{self.defined(method).removeprefix(', ')}: draws from {generators} global generator".lstrip(": ")
            ]
        for each in found:
            if not any(f"(module {name})" in each for name in self.told):
                remedy = REMEDY_OF_A_MODULE if "(module " in each else REMEDY
                self._note(into, f"{self._head(method)}, {each}; {remedy}")

    def _head(self, method: str) -> str:
        return f"{self.setting.name}: {method}()" if method else self.setting.name

    def _note(self, into: list[str], text: str) -> None:
        if text not in into:
            into.append(text)


@contextmanager
def stage() -> Iterator[None]:
    """Leave the rest of a stage where something that it needs has failed."""
    with suppress(Failed):
        yield


def batch_words(batch: Any) -> Callable[[], str]:
    """Return what is said after an error of a call that was given a batch."""
    from draco.tasks.first_check.bits import shapes

    return lambda: f"; the batch is {shapes(batch)}"


def said(error: BaseException) -> str:
    """Return in one line what an error says, or what it means here."""
    text = str(error).strip()
    if operation := without_form(error):
        return f"{operation} has no form that repeats its bits on this device; {_OTHERWISE}"
    if text.startswith("dropout: the batch has"):  # draco/models/dropout.py
        return f"{text.split(';')[0]}; the first dimension of what a torch.nn.Dropout gets must be that of the batch"
    return " ".join(text.split())[:600] if text else "it says nothing"


def is_finite(values: torch.Tensor) -> bool:
    """Say whether all numbers are finite."""
    return bool(values.isfinite().all())
