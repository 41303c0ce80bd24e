"""Which files a job's own code consists of, and which installed packages it needs; found by reading, nothing is run.

From the files and modules that a job names, imports are followed through all that lies below the working directory. A
name is looked up as `draco.own` would look it up in a run: Python's own modules and Draco first, then beside the files
that the job names and in the working directory, then among the installed packages.
"""

import importlib.machinery
import importlib.util
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from draco.code.imports import Import, When, imports
from draco.code.selection import looks_secret, within
from draco.errors import OwnCodeError

_SUFFIXES = (*importlib.machinery.EXTENSION_SUFFIXES, ".py")  # in the order in which Python looks
_WEIGHT: Mapping[When, int] = {"always": 2, "called": 1, "maybe": 0}


class Need(NamedTuple):
    """Where a package is imported that is not the job's own."""

    file: str
    line: int  # 0: the job names it
    when: When

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}" if self.line else self.file


class Found(NamedTuple):
    """What reading a job's own code has told."""

    files: tuple[str, ...] = ()  # paths from the working directory
    needs: Mapping[str, Need] = {}  # top-level names of packages, each with the place that needs it most
    shadowed: Mapping[str, Need] = {}  # own files that give way to a module of Python's of the same name


class Reached(NamedTuple):
    """How far a dotted name leads through local files."""

    files: tuple[Path, ...]
    parts: int  # how many of its parts are files or folders
    is_package: bool  # whether the last of them is a folder, which may hold more


def discover(named: Sequence[str], root: Path) -> Found:
    """Return the files that the code named in a job consists of, and what else it needs.

    `named` are the paths without their last part: `my_task.py`, `rules.mine`. `root` is the working directory.

    Raises:
        OwnCodeError: a file is not there or lies elsewhere, is no Python, or imports a local module that is not there;
            names every one with its file and line.
    """
    files = [each for each in dict.fromkeys(named) if each.endswith(".py")]
    faults = [fault for each in files if (fault := _unfit(each, root))]
    entries = [root / path for each in files if (path := within(each)) and (root / path).is_file()]
    search = _Search(root, list(dict.fromkeys([*(entry.parent for entry in entries), root])), faults)
    search.wait(entries)
    for each in dict.fromkeys(named):
        if not each.endswith(".py"):
            search.follow(Import(each, 0, (), 0, "always"), "the job", root)
    while search.waiting:
        search.read(search.waiting.popleft())
    if faults:
        raise OwnCodeError("\n".join(faults))
    return Found(tuple(sorted(map(search.short, search.seen))), search.needs, search.shadowed)


def _unfit(named: str, root: Path) -> str:
    """Return why a file that a job names is of no use, or nothing."""
    path = within(named)
    if path is None:
        return f"{named}: must lie below the working directory, so that it can travel with the run"
    return "" if (root / path).is_file() else f"{named}: there is no such file in {root.absolute()}"


class _Search:
    """What was found so far, and what is still to be read."""

    def __init__(self, root: Path, folders: Sequence[Path], faults: list[str]) -> None:
        self.root, self.folders, self.faults = root, folders, faults
        self.waiting, self.seen = deque[Path](), set[Path]()
        self.needs, self.shadowed = dict[str, Need](), dict[str, Need]()

    def short(self, path: Path) -> str:
        """Return a file's path from the working directory."""
        return path.relative_to(self.root).as_posix()

    def wait(self, paths: Sequence[Path]) -> None:
        """Let files be read that were not yet."""
        for path in paths:
            if path not in self.seen:
                self.seen.add(path)
                self.waiting.append(path)

    def read(self, path: Path) -> None:
        """Follow the imports of a file."""
        if looks_secret(path):
            self.faults.append(f"{self.short(path)}: looks like a file of keys, which never travels; rename code")
        elif path.suffix == ".py":
            try:
                found = imports(path.read_bytes(), self.short(path))
            except OwnCodeError as error:
                self.faults.append(str(error))
                return
            for each in found:
                self.follow(each, self.short(path), path.parent)

    def follow(self, each: Import, by: str, folder: Path) -> None:
        """Follow one import of the file `by`, which lies in `folder`."""
        place = Need(by, each.line, each.when)
        if each.level:
            for _ in range(each.level - 1):
                folder = folder.parent
            if folder.is_relative_to(self.root):
                self._take(each, [folder], place)
            return
        top = each.module.partition(".")[0]
        if not top or top == "draco" or top in sys.stdlib_module_names:
            if top and top != "draco" and reached([top], self.folders, folders_too=False):
                self.shadowed.setdefault(top, place)
            return
        if reached([top], self.folders, folders_too=False):
            self._take(each, self.folders, place)
        elif is_installed(top, self.folders) or not reached([top], self.folders, folders_too=True):
            self._need(top, place)
        else:
            self._take(each, self.folders, place)

    def _take(self, each: Import, folders: Sequence[Path], place: Need) -> None:
        parts = each.module.split(".") if each.module else []
        found = reached(parts, folders, folders_too=True) if parts else Reached((), 0, True)
        if found is None or found.parts < len(parts):
            if each.when == "always":
                self.faults.append(
                    f"{place}: imports {'.' * each.level}{each.module}, and there is no such file below "
                    f"{self.root.absolute()}"
                )
            self.wait(found.files if found else ())
            return
        self.wait(found.files)
        if each.level:
            self.wait([path for path in [folders[0] / "__init__.py"] if path.is_file()])
        if found.is_package:
            for name in each.names:
                if inner := reached([*parts, name], folders, folders_too=True):
                    self.wait(inner.files)

    def _need(self, top: str, place: Need) -> None:
        known = self.needs.get(top)
        if known is None or _WEIGHT[place.when] > _WEIGHT[known.when]:
            self.needs[top] = place


def reached(parts: Sequence[str], folders: Sequence[Path], *, folders_too: bool) -> Reached | None:
    """Return how far a dotted name leads, from the first of the folders from which it leads anywhere.

    With `folders_too` a folder without `__init__.py` counts at the beginning of the name, as Python has it for names
    that are nowhere else.
    """
    for folder in folders:
        files, here, depth = list[Path](), folder, 0
        for depth, part in enumerate(parts):
            inner = here / part
            if (inner / "__init__.py").is_file():
                files.append(inner / "__init__.py")
            elif module := next((path for path in _modules(here, part) if path.is_file()), None):
                return Reached((*files, module), depth + 1, False)
            elif not inner.is_dir() or not (depth or folders_too):
                break
            here = inner
        else:
            return Reached(tuple(files), len(parts), True)
        if depth:
            return Reached(tuple(files), depth, True)
    return None


def _modules(folder: Path, name: str) -> Iterator[Path]:
    return (folder / f"{name}{suffix}" for suffix in _SUFFIXES)


def is_installed(top: str, besides: Sequence[Path] = ()) -> bool:
    """Say whether Python finds a top-level module elsewhere than in these folders. Nothing is imported."""
    if top in sys.builtin_module_names or top in sys.stdlib_module_names:
        return True
    own = {str(folder.absolute()) for folder in besides}
    path = [each for each in sys.path if str(Path(each).absolute()) not in own]
    with_path: Callable[..., object] = importlib.machinery.PathFinder.find_spec
    if with_path(top, path) is not None:
        return True
    others = [finder for finder in sys.meta_path if finder is not importlib.machinery.PathFinder]
    return any(finder.find_spec(top, None) is not None for finder in others)


def missing(needs: Mapping[str, Need], lacks: Sequence[str], where: str = "") -> list[str]:
    """Return a sentence for every package that code needs in any case and that is lacking, on the node `where`."""
    remedy = (
        "build an image that has it (docs/clusters.md, Packages of your own), then make cluster-up IMAGE=..."
        if where
        else "install it by .venv/bin/pip install {}"
    )
    return [
        f"{where + ': ' if where else ''}{needs[top]}: needs {top}, which is neither a file of yours nor installed; "
        + remedy.format(top)
        for top in sorted(needs)
        if top in lacks and needs[top].when == "always"
    ]
