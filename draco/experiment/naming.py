"""Objects of the caller's in a job: a class, a function or a task in the place of a name becomes the path of one.

`task=Digits` is `task: digits.py:Digits` where the class is in that file below the working folder, or
`task: numbers.tasks:Digits` where it is in an installed package. What is elsewhere, such as in a notebook's cell, gets
a path that no file can have, `<given>:Digits`: only this process knows it. `functools.partial(Digits, size=8)` brings
its options along.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from draco import own
from draco.own import NOWHERE
from draco.tasks import Task


class Named(NamedTuple):
    """The values of a job, with paths in the place of objects."""

    values: dict[str, Any]
    objects: dict[str, Any]  # by path


def named(values: Mapping[str, Any]) -> Named:
    """Return the values of a job as plain ones, and the objects that were among them."""
    objects: dict[str, Any] = {}
    return Named({str(key): _plain(value, objects) for key, value in values.items()}, objects)


@contextlib.contextmanager
def given(objects: Mapping[str, Any]) -> Iterator[None]:
    """Let paths name these objects in this process while it is entered (draco/own.py)."""
    before = {path: own.GIVEN[path] for path in objects if path in own.GIVEN}
    own.GIVEN.update(objects)
    try:
        yield
    finally:
        for path in objects:
            own.GIVEN.pop(path, None)
        own.GIVEN.update(before)


def is_nowhere(path: object) -> bool:
    """Say whether a path is of an object that no other process can have."""
    return isinstance(path, str) and path.startswith(f"{NOWHERE}:")


def _plain(value: Any, objects: dict[str, Any]) -> Any:
    """Return a value as YAML holds it."""
    if isinstance(value, Mapping):
        return _unfolded({str(key): _plain(inner, objects) for key, inner in value.items()})
    if isinstance(value, list | tuple):
        return [_plain(inner, objects) for inner in value]
    if isinstance(value, functools.partial) and not value.args:
        return {"name": _plain(value.func, objects), "options": _plain(value.keywords, objects)}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Task) or callable(value):
        path = _free(path_of(value), value, objects)
        objects[path] = value
        return path
    return value


def _unfolded(section: dict[str, Any]) -> dict[str, Any]:
    """Return a section whose name was a partial: its name, and its options with those that were given besides."""
    name = section.get("name")
    if not isinstance(name, dict):
        return section
    options = section.get("options")
    return {**section, **name, "options": {**name["options"], **(options if isinstance(options, dict) else {})}}


def _free(path: str, thing: Any, objects: Mapping[str, Any]) -> str:
    """Return a path, with a number where another object has it: two functions without a name, as a rule."""
    free, number = path, 1
    while objects.get(free, thing) is not thing:
        number += 1
        free = f"{path}_{number}"
    return free


def path_of(thing: Any) -> str:
    """Return the path of a class, a function or a task: a file below the working folder, a package, or nowhere."""
    name = getattr(thing, "__qualname__", type(thing).__name__)
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    if module is None or getattr(module, name, None) is not thing:
        return f"{NOWHERE}:{re.sub(r'[^0-9A-Za-z_]', '_', name.rpartition('.')[2])}"
    file, root = _file(thing), own.root().absolute()
    is_script = module.__name__ == "__main__"
    if file and file.is_relative_to(root) and own.is_own(str(file)) and not (is_script and not _defines(file, name)):
        return f"{file.relative_to(root)}:{name}"
    elsewhere = is_script or (file is not None and own.is_own(str(file)))
    return f"{NOWHERE if elsewhere else module.__name__}:{name}"


def _file(thing: Any) -> Path | None:
    """Return the file of Python's that something is defined in, or None where there is no such file."""
    try:
        found = inspect.getsourcefile(thing)
    except (TypeError, OSError):  # of a class in a notebook, which has no file
        return None
    file = Path(found).absolute() if found else None
    return file if file and file.suffix == ".py" and file.is_file() else None


def _defines(file: Path, name: str) -> bool:
    """Say whether a script sets a name at its top level: else the interpreter's user has, after it had run."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return False
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return name in names
