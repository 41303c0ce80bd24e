"""The own code in a run directory: where it is, and how a process loads from it instead of the working directory."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from draco import own
from draco.code.pack import NOTHING, Pack, digest_of, read, verify, write

FOLDER = "code"  # in a run directory


class Copy(NamedTuple):
    """A copy of a job's own code, and the digest that it must have."""

    folder: Path
    digest: str

    @property
    def environment(self) -> dict[str, str]:
        """What tells a process to load from it."""
        return {own.FOLDER: str(self.folder.absolute()), own.DIGEST: self.digest}


def record(run: Path, pack: Pack) -> None:
    """Write a job's own code into a run directory; nothing where there is none."""
    if pack.files:
        write(pack, run / FOLDER)


def copy(run: Path) -> Copy | None:
    """Return a run's copy of its job's own code, or None where the job has none.

    Raises:
        OwnCodeError: there is one that was never whole.
    """
    folder = run / FOLDER
    return Copy(folder, digest_of(folder)) if folder.exists() else None


def pack_of(run: Path) -> Pack:
    """Return a run's own code, verified; nothing where it has none.

    Raises:
        OwnCodeError: it was changed.
    """
    found = copy(run)
    if found is None:
        return NOTHING
    verify(*found)
    return read(found.folder)


def load_from(found: Copy | None) -> None:
    """Let this process load own code from a copy, to its end; whether that is whole is looked at elsewhere.

    No compiled code is written beside it: that would be run in the place of what was recorded.
    """
    if found:
        os.environ.update(found.environment)
        sys.dont_write_bytecode = True


def verify_here() -> None:
    """In a process of a run: make sure that the copy which it is to load from is the one that was recorded.

    Raises:
        OwnCodeError: it is another.
    """
    digest = os.environ.get(own.DIGEST)
    if digest:
        verify(own.root(), digest)
        sys.dont_write_bytecode = True


@contextmanager
def loading_from(run: Path) -> Iterator[None]:
    """Let own code be loaded from a run's verified copy while this is entered; a run without one changes nothing.

    Modules that were loaded from elsewhere under the same names are put aside meanwhile.

    Raises:
        OwnCodeError: the copy was changed.
    """
    found = copy(run)
    if found is None:
        yield
        return
    verify(*found)
    before = {name: os.environ.get(name) for name in (own.FOLDER, own.DIGEST)}
    path, flag = list(sys.path), sys.dont_write_bytecode
    names = _names(found.folder)
    aside = {name: sys.modules.pop(name) for name in _loaded(names)}
    own.forget()
    os.environ.update(found.environment)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        sys.path[:], sys.dont_write_bytecode = path, flag
        for name in _loaded(names):
            del sys.modules[name]
        sys.modules.update(aside)
        own.forget()


def _names(folder: Path) -> set[str]:
    """Return the top-level names under which files of a copy may be loaded; see draco/own.py."""
    parts = {part.partition(".")[0] for path in read(folder).files for part in path.split("/")}
    return parts | {f"own_{part}" for part in parts}


def _loaded(names: set[str]) -> list[str]:
    """Return the loaded modules of these top-level names that are a user's own."""
    found = [name for name in sys.modules if name.partition(".")[0] in names]
    return [name for name in found if (file := getattr(sys.modules[name], "__file__", None)) and own.is_own(file)]
