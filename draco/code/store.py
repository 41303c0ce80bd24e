"""Packs on a node, in folders named by their digests, from which the node's workers load.

python -m draco.code.store has DIGEST    ends with 0 where the node has the pack, whole
python -m draco.code.store put DIGEST    stores the pack on standard input

It is run in the node's work folder. The store lies beside the data sets, as these are where the head writes and workers
only read: on a cluster's storage. Without one it lies on each node's own disk. What has not been used for a month goes.
"""

import contextlib
import os
import secrets
import shutil
import sys
import time
from pathlib import Path

from draco.code.pack import MOST_TEXT, Pack, loaded, verify, write
from draco.errors import DracoError, OwnCodeError

STORE = Path("data", ".code")
_KEPT_S = 30 * 24 * 3600.0
_NEW = "new-"  # what a folder is called until it is whole


def put(pack: Pack, store: Path = STORE) -> Path:
    """Return the folder of a pack in a store, made where it is not there, or not whole; remove old ones."""
    folder = store / pack.digest
    store.mkdir(parents=True, exist_ok=True)
    if not has(pack.digest, store):
        if folder.exists():
            shutil.rmtree(folder)
        new = store / f"{_NEW}{secrets.token_hex(8)}"
        write(pack, new)
        with contextlib.suppress(OSError):  # another process has just stored the same, which is seen next
            new.rename(folder)
        shutil.rmtree(new, ignore_errors=True)
        verify(folder, pack.digest)
    os.utime(folder)
    forget(store)
    return folder


def has(digest: str, store: Path = STORE) -> bool:
    """Say whether a store has a pack, whole and unchanged."""
    try:
        verify(store / digest, digest)
    except OwnCodeError:
        return False
    return True


def forget(store: Path = STORE) -> None:
    """Remove what has not been used for a month, and what was begun a day ago and never ended."""
    now = time.time()
    for folder in store.iterdir():
        with contextlib.suppress(OSError):
            age = now - folder.stat().st_mtime
            if age > (24 * 3600.0 if folder.name.startswith(_NEW) else _KEPT_S):
                shutil.rmtree(folder)


def main(what: str, digest: str) -> None:
    """Do what the head asks of this node."""
    try:
        if what == "put":
            put(loaded(sys.stdin.read(MOST_TEXT + 1), digest))
        else:
            verify(STORE / digest, digest)
    except (DracoError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
