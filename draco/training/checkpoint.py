"""The checkpoints of a run: everything needed to go on exactly where it stopped, bit for bit.

    checkpoints/step-00000050.pt          tensors and plain values only; loads with `weights_only=True`
    checkpoints/step-00000050.json        its manifest: size and SHA-256; written last, so the file is whole
    checkpoints/step-00000050.pt.refused  what was found under such a name and could not be used, set aside

A file is written under a temporary name, synced and renamed. A file that its manifest confirms is never overwritten. A
file that cannot be used is never deleted; others are, by the job's `checkpoint_keep` (thinning.py). Nothing that is
read is trusted: neither its size, its kind nor its claims. Whether the contents fit the job is asked in
checkpoint_check.py.
"""

import errno
import hashlib
import io
import json
import os
import re
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from draco.errors import DracoError, ExitCode
from draco.files import replace, sync_folder

Contents = dict[str, Any]

_NAME = re.compile(r"step-([0-9]{8,12})\.pt")
_MANIFEST_NAME = re.compile(r"step-([0-9]{8,12})\.json")
_MANIFEST_LIMIT = 1 << 16  # bytes; ours have about 150
_SHOWN = 200  # characters of a foreign library's message


class CheckpointError(DracoError):
    """A checkpoint cannot be used; `why` says it without the path."""

    exit_code = ExitCode.FAILED

    def __init__(self, why: str, path: Path | None = None) -> None:
        super().__init__(f"{path}: {why}" if path else why)
        self.why = why


class Manifest(NamedTuple):
    """What a manifest says of its checkpoint."""

    step: int
    size: int  # bytes
    sha256: str


def save(folder: Path, step: int, contents: Contents) -> Path:
    """Write the checkpoint of `step`; where a verified one is there already, leave it as it is."""
    path = folder / f"step-{step:08d}.pt"
    if _is_whole(path):
        return path
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    raw = buffer.getvalue()
    set_aside(path)
    replace(path, raw)
    summary = {"step": step, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), "torch": torch.__version__}
    replace(path.with_suffix(".json"), json.dumps(summary, indent=1).encode())
    sync_folder(folder)
    return path


def load(path: Path, limit: int | None = None) -> Contents:
    """Return a checkpoint's contents on the CPU.

    Args:
        path: the checkpoint; its manifest is beside it.
        limit: bytes beyond which the file is not even read.

    Raises:
        CheckpointError: the file is missing, too large, cut, changed, or holds more than tensors and plain values.
    """
    try:
        manifest = _manifest(path)
        if limit is not None and manifest.size > limit:
            raise CheckpointError(f"its manifest speaks of {manifest.size} bytes, this job needs at most {limit}")
        with _open(path, manifest.size) as file:
            raw = file.read(manifest.size + 1)
        if len(raw) != manifest.size or hashlib.sha256(raw).hexdigest() != manifest.sha256:
            raise CheckpointError(f"{len(raw)} bytes whose SHA-256 is not the one in its manifest")
        return _unpacked(raw)
    except (CheckpointError, OSError) as error:
        why = error.why if isinstance(error, CheckpointError) else f"cannot be read ({error.strerror})"
        raise CheckpointError(why, path) from error


def newest_usable(
    folder: Path, limit: int, restore: Callable[[int, Contents], None], refuse: Callable[[Path, str], None]
) -> Path | None:
    """Restore the newest checkpoint that can be used and return it; None where there is none at all.

    Args:
        folder: where the checkpoints are.
        limit: bytes that a checkpoint of this job takes at most.
        restore: takes step and contents, or raises CheckpointError and takes nothing.
        refuse: is told of every checkpoint that is passed over, newest first, and why.

    Raises:
        CheckpointError: there are checkpoints and none can be used; to start anew is for the user to decide.
    """
    refused: list[tuple[Path, str]] = []
    for step, path in reversed(steps(folder)):
        try:
            restore(step, load(path, limit))
        except CheckpointError as error:
            refused.append((path, error.why))
            refuse(path, error.why)
        else:
            for other, _ in refused:
                set_aside(other)
            return path
    if not is_begun(folder):
        return None
    before = sorted(folder.glob("step-*.pt.refused*"))
    reasons = [f"{path.name}: {why}" for path, why in refused] + [f"{path.name}: refused before" for path in before]
    raise CheckpointError(
        f"none of its checkpoints can be used ({'; '.join(reasons)}); put a good one there, or delete {folder}/step-* "
        "to start anew from step 0",
        folder.parent,
    )


def remove(folder: Path, step: int) -> None:
    """Remove a checkpoint; from the first moment on it does not count."""
    path = folder / f"step-{step:08d}.pt"
    for each in (path.with_suffix(".json"), path):
        if each.is_file():
            each.unlink(missing_ok=True)


def is_begun(folder: Path) -> bool:
    """Say whether there has ever been a checkpoint in the folder, usable or not."""
    return bool(steps(folder)) or any(folder.glob("step-*.refused*"))


def set_aside(path: Path) -> None:
    """Make the names of a checkpoint free by renaming what is there, so that nothing is lost and nothing in the way.

    A plain file without a manifest is what a killed server leaves: that is overwritten.
    """
    manifest = path.with_suffix(".json")
    had_manifest = os.path.lexists(manifest)
    if had_manifest:  # first: from here on the step does not count
        manifest.rename(_free(manifest))
    if os.path.lexists(path) and (had_manifest or not path.is_file()):
        path.rename(_free(path))


def _free(path: Path) -> Path:
    """Return a name to set `path` aside under that nothing has yet."""
    name, attempt = path.with_name(f"{path.name}.refused"), 1
    while os.path.lexists(name):
        attempt += 1
        name = path.with_name(f"{path.name}.refused-{attempt}")
    return name


def steps(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of every checkpoint that has a manifest, oldest first."""
    named = ((_MANIFEST_NAME.fullmatch(manifest.name), manifest) for manifest in folder.glob("step-*.json"))
    return sorted((int(match[1]), manifest.with_suffix(".pt")) for match, manifest in named if match)


def unfinished(folder: Path) -> list[int]:
    """Return the steps whose file has no manifest, rising: a server was killed that wrote or removed it."""
    named = ((_NAME.fullmatch(path.name), path) for path in folder.glob("step-*.pt"))
    return sorted(int(match[1]) for match, path in named if match and not path.with_suffix(".json").exists())


def step_of(path: Path) -> int:
    """Return the step at which a checkpoint was taken."""
    return int(path.stem.removeprefix("step-"))


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a checkpoint as its manifest says it.

    Raises:
        CheckpointError: its manifest cannot be used.
    """
    return _manifest(path).sha256


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint that has a manifest."""
    found = steps(folder)
    return found[-1][1] if found else None


def _is_whole(path: Path) -> bool:
    """Say whether a checkpoint is there and is what its manifest says."""
    try:
        manifest = _manifest(path)
        with _open(path, manifest.size) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == manifest.sha256
    except (CheckpointError, OSError):
        return False


def _manifest(path: Path) -> Manifest:
    """Read the manifest of a checkpoint."""
    with _open(path.with_suffix(".json")) as file:
        text = file.read(_MANIFEST_LIMIT + 1)
    if len(text) > _MANIFEST_LIMIT:
        raise CheckpointError(f"its manifest has more than {_MANIFEST_LIMIT} bytes")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError("its manifest is not JSON") from error
    said = said if isinstance(said, dict) else {}
    step, size, digest = (said.get(key) for key in ("step", "bytes", "sha256"))
    if type(step) is not int or type(size) is not int or type(digest) is not str:
        raise CheckpointError("its manifest must hold the numbers step and bytes and the text sha256")
    if step != step_of(path):
        raise CheckpointError(f"its manifest is of step {step}")
    return Manifest(step, size, digest)


def _open(path: Path, size: int | None = None) -> io.BufferedReader:
    """Open a plain file, of `size` bytes where that is given; never wait for a pipe that has taken its name."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and size in (None, found.st_size):
            return open(descriptor, "rb")
        os.close(descriptor)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise CheckpointError(f"{path.name} is missing") from error
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path.name} is not a file")
    raise CheckpointError(f"has {found.st_size} bytes, its manifest says {size}")


def _unpacked(raw: bytes) -> Contents:
    """Return what a checkpoint's bytes hold, without running any code in them and in about as much memory."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            parts = archive.infolist()
        # torch.save compresses nothing; an archive that does could unpack to any size.
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(p.file_size for p in parts) > len(
            raw
        ):
            raise CheckpointError("it is compressed, as no checkpoint of Draco is")
        contents = torch.load(io.BytesIO(raw), weights_only=True, map_location="cpu")
    except CheckpointError:
        raise
    except Exception as error:  # what garbage may raise in the unpickler has no bounds
        raise CheckpointError(f"it does not load as tensors and plain values ({_said(error)})") from error
    if type(contents) is not dict:
        raise CheckpointError(f"it holds a {type(contents).__name__} instead of a dict")
    return contents


def _said(error: Exception) -> str:
    """Return the gist of torch's or zipfile's message, which may be long, quote the file, and advise to trust it."""
    found = re.search(r"WeightsUnpickler error: ([^\n]*)", str(error))
    text = found[1].split(" was not an allowed global")[0] if found else f"{type(error).__name__}: {error}"
    return "".join(c if c.isprintable() else " " for c in text)[:_SHOWN].strip()
