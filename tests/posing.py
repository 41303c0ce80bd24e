"""A device that poses as a GPU: torch computes on it what the CPU computes, and refuses what it refuses on a GPU.

It is a device of its own for torch (`posing.cpp`, compiled once): tensors on it do not mix with those of the CPU, have
no numpy arrays, and are moved by copies only. Copies that need not be waited for (`non_blocking`) come late: with the
next thing that the device does, or when an event, a stream or the device is waited for. So whoever reads too early
reads what was there before, and whoever overwrites too early sends what came after.
"""

import contextlib
import fcntl
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

NAME = "posing"
_SOURCE = Path(__file__).with_suffix(".cpp")


class Stream:
    """A stream of the device, which has one queue for all."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        del device, priority

    def wait_event(self, event: "Event") -> None:
        """Whatever is done later on this stream comes after what the event has recorded, as on any stream here."""

    def wait_stream(self, stream: "Stream") -> None:
        """The same for all that the stream does now."""

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        _flush()

    def query(self) -> bool:
        return False


class Event:
    """An event that is complete from the second question on, or when it is waited for."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        del enable_timing, blocking
        self._complete, self._asked = True, False

    def record(self, stream: Stream | None = None) -> None:
        self._complete, self._asked = False, False

    def query(self) -> bool:
        if not self._complete and self._asked:
            self.synchronize()
        self._asked = True
        return self._complete

    def synchronize(self) -> None:
        _flush()
        self._complete = True

    def wait(self, stream: Stream | None = None) -> None:
        """As `Stream.wait_event`."""

    def elapsed_time(self, end: "Event") -> float:
        return 1.0


def _flush() -> None:
    torch.ops.posing.flush()


LOCKED: dict[int, int] = {}  # address -> bytes of the host memory that is page-locked


class Runtime:
    """What the tests need of CUDA's own interface."""

    @staticmethod
    def cudaHostRegister(address: int, size: int, flags: int) -> int:  # noqa: N802
        if any(start < address + size and address < start + held for start, held in LOCKED.items()):
            return 712  # cudaErrorHostMemoryAlreadyRegistered
        LOCKED[address] = size
        return 0

    @staticmethod
    def cudaHostUnregister(address: int) -> int:  # noqa: N802
        del LOCKED[address]
        return 0


_DEFAULT = Stream()
_current = [_DEFAULT]


@contextlib.contextmanager
def _stream(stream: Stream | None) -> Iterator[None]:
    _current.append(stream or _current[-1])
    try:
        yield
    finally:
        _current.pop()


@cache
def device() -> torch.device:
    """Return the device, which is there from then on: from before this process's first backward pass, if at all.

    torch's autograd counts the devices then, and starts a thread for each.

    Raises:
        FileNotFoundError: there is no compiler, `g++`.
    """
    properties = SimpleNamespace(name="Posing", total_memory=2**34, multi_processor_count=4, major=9, minor=0)
    module = SimpleNamespace(
        __name__=f"torch.{NAME}",
        Stream=Stream, Event=Event, stream=_stream, current_stream=lambda device=None: _current[-1],
        default_stream=lambda device=None: _DEFAULT, synchronize=lambda device=None: _flush(),
        is_available=lambda: True, is_initialized=lambda: True, _is_in_bad_fork=lambda: False, _lazy_init=lambda: None,
        device_count=lambda: 1, current_device=lambda: 0, set_device=lambda device: None,
        get_device_name=lambda device=None: properties.name, get_device_capability=lambda device=None: (9, 0),
        get_device_properties=lambda device=None: properties, mem_get_info=lambda device=None: (2**34, 2**34),
        manual_seed_all=lambda seed: None, get_rng_state_all=list, set_rng_state_all=lambda states: None,
        get_rng_state=lambda device=None: torch.zeros(16, dtype=torch.uint8), set_rng_state=lambda *given: None,
        get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16], cudart=lambda: Runtime,
    )  # fmt: skip
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, module)
    torch.ops.load_library(str(_library()))
    return torch.device(NAME, 0)


def _library() -> Path:
    """Return the compiled device, compiled now where nobody has yet, for this torch."""
    torch_folder = Path(torch.__file__).parent
    digest = hashlib.sha256(_SOURCE.read_bytes() + f"{torch.__version__} {torch_folder}".encode()).hexdigest()[:16]
    library = Path(sys.prefix, f"draco-posing-{digest}.so")
    with library.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes begin at once
        if not library.exists():
            include, new = torch_folder / "include", library.with_suffix(".new")
            subprocess.run(
                ["g++", "-shared", "-fPIC", "-std=c++20", "-O0", f"-I{include}", f"-I{include}/torch/csrc/api/include",
                 str(_SOURCE), "-o", str(new), f"-L{torch_folder}/lib", "-ltorch", "-ltorch_cpu", "-lc10",
                 f"-Wl,-rpath,{torch_folder}/lib"],
                check=True,
            )  # fmt: skip
            new.rename(library)
    return library
