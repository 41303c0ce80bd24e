"""A job's own files as one value: its digest, its form on the way, and its copy in a folder.

A copy holds the files and `.manifest`: a line of SHA-256 and path for each, so `sha256sum -c .manifest` checks it as
well. The SHA-256 of the manifest is the digest of the whole. On the way a pack is a JSON object of paths and base64: no
link, device, owner or mode can be said in it, and nothing is written before all of it was looked at.
"""

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from draco import files
from draco.errors import OwnCodeError

MANIFEST = ".manifest"
MOST_BYTES = 64 << 20
MOST_FILES = 10_000
MOST_TEXT = 2 * MOST_BYTES  # of the form on the way, which is 4/3 of the files and their paths
_NAMED = 5  # files that a message names


class Pack(NamedTuple):
    """Files by their paths from the working directory, with `/` between folders."""

    files: Mapping[str, bytes] = {}

    @property
    def manifest(self) -> bytes:
        """A line of SHA-256 and path for each file, in the order of the paths."""
        lines = (f"{hashlib.sha256(self.files[path]).hexdigest()}  {path}\n" for path in sorted(self.files))
        return "".join(lines).encode()

    @property
    def digest(self) -> str:
        """The SHA-256 of the manifest."""
        return hashlib.sha256(self.manifest).hexdigest()

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(map(len, self.files.values()))


NOTHING = Pack()  # of a job that names no own code


def limited(pack: Pack) -> Pack:
    """Return the pack.

    Raises:
        OwnCodeError: it is larger than what travels; names the largest files.
    """
    if len(pack.files) > MOST_FILES:
        raise OwnCodeError(
            f"code: {len(pack.files)} files, and {MOST_FILES} travel at most; name folders that hold code only"
        )
    if pack.size > MOST_BYTES:
        largest = sorted(pack.files, key=lambda path: -len(pack.files[path]))[:_NAMED]
        shown = ", ".join(f"{path} ({len(pack.files[path]) / 2**20:.1f} MiB)" for path in largest)
        raise OwnCodeError(
            f"code: {pack.size / 2**20:.0f} MiB, and {MOST_BYTES >> 20} MiB travel at most; the largest: {shown}; "
            "data sets belong into the data folder, and the code there is named by code: [paths]"
        )
    return pack


def is_safe(path: str) -> bool:
    """Say whether a path leads to a visible place below the folder that it is joined to, and is written in one way."""
    parts = path.split("/")
    plain = path.isprintable() and "\\" not in path and len(path.encode(errors="replace")) <= 1024
    return plain and all(part and not part.startswith(".") for part in parts)


def dumped(pack: Pack) -> str:
    """Return a pack's form on the way."""
    return json.dumps({path: base64.b64encode(content).decode() for path, content in pack.files.items()})


def loaded(text: str, digest: str) -> Pack:
    """Return the pack of that digest from its form on the way; nothing of the text is trusted.

    Raises:
        OwnCodeError: it is none, or another.
    """
    if len(text) > MOST_TEXT:
        raise OwnCodeError(f"code: the pack has more than {MOST_TEXT >> 20} MiB as it came; it was not opened")
    try:
        said = json.loads(text)
        pack = Pack({path: base64.b64decode(content, validate=True) for path, content in said.items()})
    except (ValueError, AttributeError, TypeError, RecursionError, binascii.Error) as error:
        raise OwnCodeError(f"code: what came is no pack ({type(error).__name__}); send it again") from error
    bad = [path for path in pack.files if not is_safe(path)]
    if bad:
        raise OwnCodeError(f"code: a pack holds a path that leads elsewhere: {bad[0]!r}; nothing was written")
    if pack.digest != digest:
        raise OwnCodeError(f"code: the pack that came is not {digest[:12]} but {pack.digest[:12]}; send it again")
    return limited(pack)


def write(pack: Pack, folder: Path) -> None:
    """Write a pack into a folder that is not there yet, as files that nobody may write; the manifest last."""
    folder.mkdir(parents=True)
    for path, content in pack.files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        files.replace(target, content, mode=0o444)
    files.replace(folder / MANIFEST, pack.manifest, mode=0o444)


def read(folder: Path) -> Pack:
    """Return the pack in a folder, without a look at whether it is as it was recorded."""
    return limited(Pack({path: (folder / path).read_bytes() for path in _present(folder)}))


def digest_of(folder: Path) -> str:
    """Return the digest that a copy is recorded under.

    Raises:
        OwnCodeError: it has no manifest.
    """
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise OwnCodeError(
            f"{folder}: the job's own code is not there ({error.strerror}); copy the run again"
        ) from error


def verify(folder: Path, digest: str) -> None:
    """Make sure that a folder holds the pack of that digest and nothing else, compiled Python included.

    Raises:
        OwnCodeError: it does not; names the files that differ.
    """
    found = digest_of(folder)
    if found != digest:
        raise OwnCodeError(f"{folder}: holds the code {found[:12]}, and the run was recorded with {digest[:12]}")
    lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    recorded = {path: sha for sha, _, path in (line.partition("  ") for line in lines)}
    present = set(_present(folder))
    wrong = [f"{path} is missing" for path in recorded if path not in present]
    wrong += [f"{path} was not recorded" for path in sorted(present - recorded.keys())]
    wrong += [f"{path} was changed" for path in recorded if path in present and _sha(folder / path) != recorded[path]]
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise OwnCodeError(
            f"{folder}: is not the code that was recorded ({digest[:12]}): {', '.join(wrong[:_NAMED])}{more}; restore "
            "it, or start anew with NEW=1"
        )


def _sha(path: Path) -> str:
    return "" if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()


def _present(folder: Path) -> Iterator[str]:
    """Yield the paths of all that is in a copy but folders and the manifest."""
    for where, folders, names in os.walk(folder):
        links = [name for name in folders if Path(where, name).is_symlink()]
        for name in (*names, *links):
            path = Path(where, name).relative_to(folder).as_posix()
            if path != MANIFEST:
                yield path
