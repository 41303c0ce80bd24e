"""Files that are whole or not there: written beside their place, synced and renamed; and the faults of a bad disk.

A reader sees a file's old content or its new one, also after a power cut. What a killed process had begun to write
stays under a temporary name, `.NAME.PID`, which `remove_temporaries` finds again.
"""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from draco.errors import MissingError
from draco.plain import plain

_REMEDIES = {
    errno.ENOENT: "is not there; name one that is",
    errno.EACCES: "may not be used by this user; let the user use it (chmod, chown), or name another",
    errno.EPERM: "may not be used by this user; let the user use it (chmod, chown), or name another",
    errno.ENOTDIR: "goes through a file as if that were a folder; name another path",
    errno.EISDIR: "is a folder where a file is needed; name a file",
    errno.EEXIST: "is there already; move it away, or name another",
    errno.ENOTEMPTY: "is a folder with something in it; move it away, or name another",
    errno.ENAMETOOLONG: "is longer than the file system allows; name a shorter path",
    errno.ELOOP: "is a link that leads back to itself; name a path without it",
    errno.ENOSPC: "cannot be written: no space is left on its disk; free some",
    errno.EDQUOT: "cannot be written: the quota of its disk is used up; free some space",
    errno.EROFS: "cannot be written: its disk is read-only; remount it, or name another path",
    errno.EIO: "cannot be read or written: its disk fails; see to it",
    errno.ESTALE: "is gone from the server of its disk; mount that anew",
    errno.EMFILE: "cannot be opened: this process has too many open files; raise ulimit -n",
    errno.ENFILE: "cannot be opened: this machine has too many open files; close some",
}
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (*NO_SPACE, errno.EROFS, errno.EIO)  # the disk's fault, whatever was to be written
_TEMPORARY = re.compile(r"\..+\.([0-9]+)")  # what `replace` writes to, and which process did


_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|(\w+))")


def expanded(path: str | Path) -> Path:
    """Return a path that a user wrote with `~` and variables replaced, by this machine and for this user.

    Those of a command's options are the operator's, as a shell would have it. Those of a job are of the machine that
    trains, which may be a cluster's head. What is there under the very name that was given is taken as it is.

    Raises:
        MissingError: a variable in it is not set.
    """
    text = os.fspath(path)
    if ("~" not in text and "$" not in text) or os.path.lexists(text):
        return Path(text)
    unset = [name for match in _VARIABLE.finditer(text) if (name := match[1] or match[2]) not in os.environ]
    if unset:
        raise MissingError(f"{text}: the variable {unset[0]} is not set here; set it, or write the path without it")
    return Path(os.path.expandvars(os.path.expanduser(text)))


def fault(error: OSError) -> str:
    """Return in one sentence what is wrong with which file and what to do; nothing where the error tells no file."""
    name = error.filename
    if not isinstance(name, str | bytes | os.PathLike) or error.errno not in _REMEDIES:
        return ""
    text = plain(os.fsdecode(name))
    if error.errno == errno.ENOENT and os.sep not in text:
        return f"{text}: there is no file or program of this name; name one that is there, or install it"
    return f"{text}: {_REMEDIES[error.errno]}"


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an error of a file that does not tell its name, as those of reading and writing, tell this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def replace(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part, even after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # a full disk needs the space
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # a failed write names no file, a failed open ours
        raise


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of `content`; the system may take it in pieces, and does when the disk is about to be full."""
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk, so that a file renamed into it is still there after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path, is_alive: Callable[[int], bool]) -> None:
    """Remove temporary files below a folder whose process is not alive, and those that this process left there."""
    for path in folder.rglob(".*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not is_alive(int(match[1]))):
            with contextlib.suppress(OSError):  # it is only in the way
                path.unlink()


def disk_fault(error: BaseException, folder: Path) -> str:
    """Return in one line what is wrong with a run's disk, or nothing where the error says nothing of it."""
    number = error.errno if isinstance(error, OSError) else None
    if number in NO_SPACE:
        return f"no space left on the disk of {folder}; free some, then resume"
    if number == errno.EROFS:
        return f"the disk of {folder} is read-only; remount it for writing, then resume"
    if number == errno.EIO:
        return f"the disk of {folder} has failed to read or write; see to it, then resume"
    return ""
