"""A job's own files and what they need: those that are found by their imports, and those that `code:` names."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from draco import own
from draco.code.discovery import Found, discover, is_installed, missing
from draco.code.pack import NOTHING, Pack, is_safe, limited, read, verify
from draco.code.selection import looks_secret, selected, within
from draco.errors import OwnCodeError
from draco.job import Job

_NO_CODE = ("name", "data", "code", "weights")  # keys of a job that hold no path of code


class Gathered(NamedTuple):
    """A job's own code, as it is now."""

    pack: Pack = NOTHING
    found: Found = Found()
    left_out: tuple[str, ...] = ()  # files of named folders that look like keys


def gather(job: Job, root: Path | None = None) -> Gathered:
    """Return a job's own files below the working directory; of a process that was sent a pack, that pack.

    Raises:
        OwnCodeError: something that the job names is not there, is no Python, looks like a key, or is too large.
    """
    named = sources(job)
    if not named and not job.code:
        return Gathered()
    if root is None and (sent := os.environ.get(own.DIGEST)):
        verify(own.root(), sent)
        return Gathered(read(own.root()), discover(named, own.root()))
    root = root or Path()
    found = discover(named, root)
    paths, left_out = _declared(job.code, root)
    both = sorted({*found.files, *paths})
    odd = [path for path in both if not is_safe(path)]
    if odd:
        raise OwnCodeError(f"{odd[0]}: own code lies in visible folders and has plain names, to travel with a run")
    pack = Pack({path: (root / path).read_bytes() for path in both})
    return Gathered(limited(pack), found, tuple(left_out))


def check_installed(found: Found, root: Path | None = None) -> None:
    """Make sure that this machine has what own code needs in any case.

    Raises:
        OwnCodeError: it has not; names every package with the file and line that imports it.
    """
    lacks = [top for top in found.needs if not is_installed(top, [root or Path()])]
    if faults := missing(found.needs, lacks):
        raise OwnCodeError("\n".join(faults))


def said(gathered: Gathered) -> list[str]:
    """Return what a user should know of a job's own code before it starts."""
    lines = [
        f"{need}: `{top}` is Python's own module there, not your {top}.py; rename your file"
        for top, need in gathered.found.shadowed.items()
    ]
    lines += [
        f"{need}: {top} is not installed here, and a function of yours imports it"
        for top, need in gathered.found.needs.items()
        if need.when == "called" and not is_installed(top, [Path()])
    ]
    if gathered.left_out:
        lines.append(f"code: left out, as they look like keys: {', '.join(gathered.left_out)}")
    return lines


def sources(job: Job) -> list[str]:
    """Return the files and modules that a job names as its own code: `my_task.py` of `my_task.py:Digits`."""
    values = {key: value for key, value in job.model_dump().items() if key not in _NO_CODE}
    return list(dict.fromkeys(text.rpartition(":")[0] for text in _paths(values)))


def _paths(value: Any) -> Iterator[str]:
    match value:
        case Mapping() if (given := value.get("options")) and "name" in value:
            yield from _paths({key: inner for key, inner in value.items() if key != "options"})
            yield from (path for path in _paths(given) if (own.root() / path.rpartition(":")[0]).is_file())
        case str() if _names_code(value):
            yield value
        case Mapping():
            for inner in value.values():
                yield from _paths(inner)
        case list() | tuple():
            for inner in value:
                yield from _paths(inner)


def _names_code(text: str) -> bool:
    """Say whether a text is the path of code in a file or a module; what `draco.run` was handed over is in neither."""
    handed_over = text in own.GIVEN or text.startswith("<")
    return own.is_path(text) and text.rpartition(":")[2].isidentifier() and not handed_over


def _declared(named: Sequence[str], root: Path) -> tuple[list[str], list[str]]:
    """Return the files that `code:` names, and those left out as they look like keys."""
    paths, secret, faults = list[str](), list[str](), list[str]()
    for each in named:
        path = within(each)
        if path is None:
            faults.append(f"code: {each}: must lie below the working directory")
        elif (root / path).is_file():
            if looks_secret(root / path):
                faults.append(f"code: {each}: looks like a file of keys, which never travels")
            paths.append(path)
        elif (root / path).is_dir():
            inside = list(selected(root, path))
            if not inside:
                faults.append(f"code: {each}: holds no file that travels; hidden and ignored ones do not")
            secret += [file for file in inside if looks_secret(root / file)]
            paths += [file for file in inside if file not in secret]
        else:
            faults.append(f"code: {each}: there is no such file or folder in {root.absolute()}")
    if faults:
        raise OwnCodeError("\n".join(faults))
    return paths, secret
