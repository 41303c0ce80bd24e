"""The prepared folder of a data set: made once from its original files, complete or not at all, mapped by everybody.

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
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from draco import files
from draco.data.datasets import DATASETS, dataset_info
from draco.data.info import PARTS, Arrays, DatasetInfo, Request
from draco.data.originals import find_originals, idx_digest, is_kmnist
from draco.errors import MissingError
from draco.lazy import Tensor

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


class Split(NamedTuple):
    """The training or the test samples of a prepared data set."""

    images: Tensor  # (N, c, h, w) uint8, memory-mapped: processes share its pages
    labels: Tensor  # (N,) int64
    info: DatasetInfo


def prepare(name: str, root: Path, source: Path | None = None, download: bool = True, *, own: bool = False) -> Path:
    """Return `root/name`, converting the data set first if it is not there yet.

    The original files are taken from `source`, else from `root/raw/name`, else from where a system package puts
    them, else from the network. Where the folder exists only the sizes of its files are read.

    Args:
        name: a key of DATASETS.
        root: the folder of all data sets; made if need be.
        source: a folder with the original files; when given, no other place is tried.
        download: whether the network may be used.
        own: the files in `source` are the user's own, in the format and the sizes of this data set.

    Raises:
        ValueError: no such data set.
        MissingError: the original files, or some of them, are nowhere to be had, or are not what they should be.
    """
    info = dataset_info(name)
    folder = root / name
    if folder.exists():
        _require_complete(name, folder, own=own)
        return folder
    origin = find_originals(name, info, root, source, download)
    root.mkdir(parents=True, exist_ok=True)
    logger.info("preparing data set %s in %s", name, folder)
    with _scratch(root, name) as scratch:
        (scratch / "raw").mkdir()
        arrays = info.convert(Request(name, info, root, origin, scratch / "raw"))
        _check(name, arrays, origin)
        if not own:
            _check_content(name, arrays, origin)
        _write(scratch / "done", name, arrays, own)
        _publish(scratch / "done", folder)
    _require_complete(name, folder, own=own)
    return folder


def verify(name: str, root: Path, *, own: bool = False) -> None:
    """Read the prepared data set again and compare it with the sha256 sums of its manifest and of the original.

    Raises:
        MissingError: it is not prepared, or a file is damaged.
    """
    folder = root / name
    _require_complete(name, folder, own=own)
    for file, entry in _read_manifest(folder)["files"].items():
        if _sha256(folder / file) != entry["sha256"]:
            raise MissingError(_damaged(folder, f"{file} does not have the sha256 that the manifest gives"))
    if not own:  # an earlier version may have taken another data set's files
        _check_content(name, {part: np.load(folder / f"{part}.npy", mmap_mode="r") for part in PARTS}, folder)


def load(name: str, root: Path, split: str, *, own: bool = False) -> Split:
    """Return the "train" or the "test" split of a prepared data set; `own`: of the user's own files.

    Raises:
        ValueError: no such data set or split.
        MissingError: the data set is not prepared in `root`, or is damaged.
    """
    import torch

    info = dataset_info(name)
    if split not in info.counts:
        raise ValueError(f"a data set has the splits train and test, not {split!r}")
    folder = root / name
    _require_complete(name, folder, own=own)
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


def _check_content(name: str, arrays: Arrays, origin: Path | None) -> None:
    """Refuse arrays that have the shapes of the data set but another content.

    Raises:
        MissingError: says whose content it is, as far as that is known.
    """
    info = DATASETS[name]
    found = {part: idx_digest(arrays[part]) for part in info.digests}
    wrong = [part for part, digest in found.items() if digest != info.digests[part]]
    if not wrong:
        return
    others = {
        other
        for other, its in DATASETS.items()
        if its.digests and all(found[part] == its.digests.get(part) for part in wrong)
    }
    whose = others.pop() if others else "KMNIST" if is_kmnist(origin) else ""
    what = ", ".join(part.replace("_", " ") for part in wrong)
    are = f"are those of {whose}: say data={whose}" if whose in DATASETS else f"are those of {whose}" if whose else ""
    raise MissingError(
        f"data set {name}: {origin or info.source} has another content: its {what} "
        f"{are or 'are of no data set that Draco knows'}; where they are meant, data.own=true takes them all the same"
    )


def _write(folder: Path, name: str, arrays: Arrays, own: bool) -> None:
    """Write the arrays and the manifest into a new folder, down to the disk."""
    folder.mkdir()
    written = {}
    for part in PARTS:
        path = folder / f"{part}.npy"
        with files.named(path), path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(arrays[part]))
            file.write(arrays[part].reshape(-1).view(np.uint8).data)  # np.save does not say why a disk took no more
            _sync(file)
        written[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    about = {"name": name, "source": DATASETS[name].source, "files": written, **({"own": True} if own else {})}
    with files.named(folder / "manifest.json"), (folder / "manifest.json").open("w") as manifest:
        json.dump(about, manifest, indent=2)
        _sync(manifest)
    files.sync_folder(folder)


def _publish(done: Path, folder: Path) -> None:
    """Rename the finished folder to its place; where another process was faster, keep that one's."""
    try:
        done.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        logger.info("%s was prepared by another process meanwhile", folder)
    else:
        files.sync_folder(folder.parent)


def _require_complete(name: str, folder: Path, *, own: bool) -> None:
    """Check that the prepared folder has every file in the size that its manifest gives.

    Raises:
        MissingError: it is not there, or not whole, or holds the user's own files and the original is meant.
    """
    if not folder.exists():
        raise MissingError(
            f"data set {name} is not prepared in {folder.parent}: run `make data`, or call draco.data.prepare"
        )
    manifest = _read_manifest(folder)
    if bool(manifest.get("own")) != own:
        held, said = ("own files", "false") if manifest.get("own") else ("the original", "true")
        raise MissingError(
            f"prepared data set {folder} was made of {held} and data.own is {said}: change that, or name another "
            "data.root"
        )
    sizes = {file: entry["bytes"] for file, entry in manifest["files"].items()}
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
