"""Files that are whole or not there: written beside their place, synced and renamed; and the faults of a bad disk.

A reader sees a file's old content or its new one, also after a power cut. What a killed process had begun to write
stays under a temporary name, `.NAME.PID`, which `remove_temporaries` finds again.
"""

import contextlib
import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (*NO_SPACE, errno.EROFS, errno.EIO)  # the disk's fault, whatever was to be written
_TEMPORARY = re.compile(r"\..+\.([0-9]+)")  # what `replace` writes to, and which process did


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
