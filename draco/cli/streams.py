"""Standard input, output and error as a shell may hand them over: closed, into a full disk, to a reader that has left.

A closed one is as good as /dev/null. What its encoding does not have is written out. A reader that has left ends a
command without a word, with the code that a shell gives a program that such a pipe has killed.
"""

import contextlib
import errno
import io
import os
import sys
from typing import IO

from draco import files
from draco.errors import ExitCode

_NAMES = {"stdout": "standard output", "stderr": "standard error"}


def make_ready() -> None:
    """See to it that all three are there, and that no letter is beyond them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, _nothing(number))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def fault(error: OSError) -> ExitCode | None:
    """Return what a command ends with because a stream cannot be written, having said why; None: it is another fault.

    Afterwards nothing more is written to that stream, not even as Python ends.
    """
    if error.filename is not None or error.errno not in (errno.EPIPE, errno.EBADF, *files.NOT_WRITABLE):
        return None
    # What was given to a stream at once is gone, and the stream itself seems well again. Files tell their names.
    broken = [name for name in _NAMES if _fails(getattr(sys, name))] or ["stdout"]
    for name in broken:
        _silence(getattr(sys, name))
    if error.errno == errno.EPIPE:
        return ExitCode.UNREAD
    with contextlib.suppress(OSError):
        what = " and ".join(_NAMES[name] for name in broken)
        print(f"{what}: cannot be written: {os.strerror(error.errno)}", file=sys.stderr, flush=True)
    return ExitCode.MISSING


def finish() -> ExitCode | None:
    """Write what is left; return what the command ends with where its results are lost, having said so."""
    if _fails(sys.stderr):  # what was said beside them
        _silence(sys.stderr)
    try:
        sys.stdout.flush()
    except OSError as error:
        return fault(error)
    return None


def _nothing(number: int) -> IO[str]:
    """Return a stream that is empty and takes everything, in the place of a descriptor that is closed."""
    with contextlib.suppress(OSError):
        os.fstat(number)
        return open(os.devnull, "r+", encoding="utf-8")  # the place was taken by another file meanwhile
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    os.set_inheritable(number, True)  # or a child would find its own closed
    return open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)


def _fails(stream: IO[str]) -> bool:
    try:
        stream.flush()
    except OSError:
        return True
    return False


def _silence(stream: IO[str]) -> None:
    """Let what a stream still holds go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        into = os.open(os.devnull, os.O_WRONLY)
        os.dup2(into, stream.fileno())
        os.close(into)
