"""The prepared folder of a data set: made once from its original files, whole or not at all, and mapped by everybody.

`<root>/<name>/` holds `train_images.npy`, `train_labels.npy`, `test_images.npy`, `test_labels.npy` and `manifest.json`
(sizes and sha256). It appears by one rename, so two processes may prepare at once and neither sees half a data set.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from draco.data.datasets import DATASETS, dataset_info
from draco.data.info import PARTS, Arrays, DatasetInfo, Request
from draco.data.originals import find_originals
from draco.errors import MissingError
from draco.lazy import Tensor, torch

logger = logging.getLogger(__name__)


class Split(NamedTuple):
    """The training or the test samples of a prepared data set."""

    images: Tensor  # (N, c, h, w) uint8, memory-mapped: processes share its pages
    labels: Tensor  # (N,) int64
    info: DatasetInfo


def prepare(name: str, root: Path, source: Path | None = None, download: bool = True) -> Path:
    """Return `root/name`, converting the data set first if it is not there yet.

    The original files are taken from `source`, else from `root/raw/name`, else from where a system package puts
    them, else from the network. When the folder is there already nothing is read but the sizes of its files.

    Args:
        name: a key of DATASETS.
        root: the folder of all data sets; made if need be.
        source: a folder with the original files; when given, no other place is tried.
        download: whether the network may be used.

    Raises:
        ValueError: no such data set.
        MissingError: the original files, or some of them, are nowhere to be had, or are not what they should be.
    """
    info = dataset_info(name)
    folder = root / name
    if folder.exists():
        _require_complete(name, folder)
        return folder
    origin = find_originals(name, info, root, source, download)
    root.mkdir(parents=True, exist_ok=True)
    logger.info("preparing data set %s in %s", name, folder)
    with _scratch(root, name) as scratch:
        (scratch / "raw").mkdir()
        arrays = info.convert(Request(name, info, root, origin, scratch / "raw"))
        _check(name, arrays, origin)
        _write(scratch / "done", name, arrays)
        _publish(scratch / "done", folder)
    _require_complete(name, folder)
    return folder


def verify(name: str, root: Path) -> None:
    """Read the prepared data set again and compare it with the sha256 sums of its manifest.

    Raises:
        MissingError: it is not prepared, or a file is damaged.
    """
    folder = root / name
    _require_complete(name, folder)
    for file, entry in _read_manifest(folder)["files"].items():
        if _sha256(folder / file) != entry["sha256"]:
            raise MissingError(_damaged(folder, f"{file} does not have the sha256 that the manifest gives"))


def load(name: str, root: Path, split: str) -> Split:
    """Return the "train" or the "test" split of a prepared data set.

    Raises:
        ValueError: no such data set or split.
        MissingError: the data set is not prepared in `root`, or is damaged.
    """
    info = dataset_info(name)
    if split not in info.counts:
        raise ValueError(f"a data set has the splits train and test, not {split!r}")
    folder = root / name
    _require_complete(name, folder)
    # "c", copy on write, maps the same shared pages as "r"; but torch warns of memory that it must not write.
    images = np.load(folder / f"{split}_images.npy", mmap_mode="c")
    labels = np.load(folder / f"{split}_labels.npy")
    return Split(torch.from_numpy(images), torch.from_numpy(labels), info)


def _check(name: str, arrays: Arrays, origin: Path | None) -> None:
    """Refuse arrays that are not the data set: counts, shapes, labels.

    Raises:
        MissingError: says what is wrong and with which files.
    """
    info = DATASETS[name]
    faults = []
    for split, count in info.counts.items():
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.shape != (count, *info.shape):
            faults.append(f"{split} images have shape {images.shape}, not {(count, *info.shape)}")
        if labels.shape != (count,):
            faults.append(f"{split} labels have shape {labels.shape}, not {(count,)}")
        if not np.array_equal(np.unique(labels), np.arange(info.classes)):
            faults.append(f"{split} labels are not the classes 0..{info.classes - 1}, each at least once")
    if faults:
        raise MissingError(f"data set {name}: {origin or info.source} is not the original: {'; '.join(faults)}")


def _write(folder: Path, name: str, arrays: Arrays) -> None:
    """Write the arrays and the manifest into a new folder, down to the disk."""
    folder.mkdir()
    files = {}
    for part in PARTS:
        path = folder / f"{part}.npy"
        with path.open("wb") as file:
            np.save(file, arrays[part])
            _sync(file)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    with (folder / "manifest.json").open("w") as manifest:
        json.dump({"name": name, "source": DATASETS[name].source, "files": files}, manifest, indent=2)
        _sync(manifest)
    _sync_folder(folder)


def _publish(done: Path, folder: Path) -> None:
    """Rename the finished folder to its place; where another process was faster, keep that one's."""
    try:
        done.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        logger.info("%s was prepared by another process meanwhile", folder)
    else:
        _sync_folder(folder.parent)


def _require_complete(name: str, folder: Path) -> None:
    """Check that the prepared folder has every file in the size that its manifest gives.

    Raises:
        MissingError: it is not there, or not whole.
    """
    if not folder.exists():
        raise MissingError(
            f"data set {name} is not prepared in {folder.parent}: run `make data`, or call draco.data.prepare"
        )
    sizes = {file: entry["bytes"] for file, entry in _read_manifest(folder)["files"].items()}
    for file in [f"{part}.npy" for part in PARTS]:
        found = (folder / file).stat().st_size if (folder / file).exists() else None
        if found is None or found != sizes.get(file):
            raise MissingError(_damaged(folder, f"{file} has {found} bytes, the manifest says {sizes.get(file)}"))


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        manifest["files"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MissingError(_damaged(folder, "manifest.json is missing or cannot be read")) from error
    return manifest


def _damaged(folder: Path, fault: str) -> str:
    return f"prepared data set {folder} is damaged: {fault}; delete the folder and prepare it again"


@contextmanager
def _scratch(root: Path, name: str) -> Iterator[Path]:
    """Make a folder beside the final one, on the same file system so that a rename works, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as folder:
        yield Path(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
