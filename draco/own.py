"""A user's own code by its path: `my_task.py:Digits`, which is a file or an importable module, and a name in it.

Files are looked for below `root()`: where the process was started, or in a run the folder of its recorded copies,
which the environment names. Nothing else of Draco imports a user's file.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from draco.errors import DracoError, OwnCodeError
from draco.lazy import load_torch

FOLDER = "DRACO_CODE"  # the environment's name of the folder of a run's own files
DIGEST = "DRACO_CODE_DIGEST"  # and of what that folder must hold; see draco/code/recorded.py

NOWHERE = "<given>"  # in the place of a file

# What a caller of `draco.run` hands over itself, by a path that no file can have: `<given>:Digits`.
GIVEN: dict[str, Any] = {}


_IMPORTS = threading.local()  # .files: what this thread is importing now, the innermost last


def is_path(name: object) -> bool:
    """Say whether a name in a job is the path of a user's own code, and none of Draco's tables."""
    return isinstance(name, str) and ":" in name


def root() -> Path:
    """Return the folder below which a user's own files are: the run's copies, or where the process was started."""
    return Path(os.environ.get(FOLDER) or ".")


def load(path: str) -> Any:
    """Return what a path names.

    Raises:
        OwnCodeError: there is no such file, module or name, or importing it fails; says in which file and line.
    """
    if path in GIVEN:
        return GIVEN[path]
    source, _, name = path.rpartition(":")
    if source == NOWHERE:
        raise OwnCodeError(
            f"{path}: was defined in the session that gave it to draco.run, and is in no file: give it again, as in "
            f"draco.Run(RUN, task={name}), or put it into a file"
        )
    if not source or not name.isidentifier():
        raise OwnCodeError(f"{path}: must be a file or a module and a name in it, such as my_task.py:Digits")
    load_torch()  # whose parts cannot be imported before it is loaded itself
    module = _file(source, str(root().absolute())) if source.endswith(".py") else _module(source)
    try:
        return getattr(module, name)
    except AttributeError:
        known = ", ".join(key for key, value in vars(module).items() if _is_its_own(module, key, value)) or "nothing"
        raise OwnCodeError(f"{path}: {source} has no {name}; it defines {known}") from None


def importing() -> str:
    """Return the user's file or module that is being imported for its path; empty where none is."""
    files: list[str] = getattr(_IMPORTS, "files", [])
    return files[-1] if files else ""


def forget() -> None:
    """Let files be loaded anew that were loaded before, as those of another folder are to be loaded now."""
    _file.cache_clear()


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Turn what a user's own code raises into an OwnCodeError that says what was called, and its file and line.

    An error of Draco's that passed through no code of the user's says all itself.
    """
    try:
        yield
    except OwnCodeError:
        raise
    except (Exception, SystemExit) as error:  # such as a script's own, which is imported
        if isinstance(error, DracoError) and not place(error):
            raise
        raise OwnCodeError(f"{what}{place(error)}: {type(error).__name__}: {error}") from error


def place(error: BaseException) -> str:
    """Return where in a user's own code an error arose, as `, my_task.py, line 3`; nothing where none of it is."""
    if isinstance(error, SyntaxError) and error.filename:
        return f", {shown(error.filename)}, line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_own(frame.filename):
            return f", {shown(frame.filename)}, line {frame.lineno}"
    return ""


def is_own(file: str) -> bool:
    """Say whether a source file is the user's: neither Draco's, nor an installed package's, nor Python's."""
    if file.startswith("<ipython") or "ipykernel_" in file:
        return True
    path = Path(file)
    foreign = (Path(__file__).parent, Path(os.__file__).parent, Path(sys.prefix))
    return path.is_file() and not any(path.is_relative_to(each) for each in foreign)


def shown(file: str) -> str:
    """Return a file's path as a message shows it: from `root()` where it is below that."""
    path = Path(file)
    return str(path.relative_to(root().absolute())) if path.is_relative_to(root().absolute()) else file


@cache
def _file(source: str, folder: str) -> ModuleType:
    file = Path(folder, source)
    if not file.is_file():
        raise OwnCodeError(f"{source}: there is no such file in {folder}")
    for each in (folder, str(file.parent)):  # for what the file imports, as where it is started as a script
        if each not in sys.path:
            sys.path.insert(0, each)
    found = importlib.util.find_spec(file.stem) if file.stem.isidentifier() else None
    own = found is not None and found.origin is not None and Path(found.origin).absolute() == file.absolute()
    # Never in the place of another module, nor of a file of the same name in another folder.
    name = file.stem if own else f"own_{file.stem}_{zlib.crc32(bytes(file.absolute())):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _imported(source):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module(source: str) -> ModuleType:
    folder = str(root().absolute())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with _imported(source):
        return importlib.import_module(source)


@contextmanager
def _imported(source: str) -> Iterator[None]:
    """Let `importing` name a file or a module, and blame it for what it raises."""
    _IMPORTS.files = [*getattr(_IMPORTS, "files", []), source]
    try:
        with blamed(f"{source}: cannot be imported"):
            yield
    finally:
        _IMPORTS.files = _IMPORTS.files[:-1]


def _is_its_own(module: ModuleType, key: str, value: Any) -> bool:
    return callable(value) and not key.startswith("_") and getattr(value, "__module__", "") == module.__name__
