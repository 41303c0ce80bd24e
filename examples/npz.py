"""Images of your own: classification of what is in one .npz file.

The file holds four arrays, named as in the well-known mnist.npz:

    x_train, x_test   images, uint8 (N, height, width), or (N, height, width, channels)
    y_train, y_test   their classes, whole numbers (N,) from 0

This writes such a file of 1,797 handwritten digits, 8x8, which are part of scikit-learn, and then trains on it:

    .venv/bin/python examples/npz.py data/digits.npz
    make train JOB=examples/npz.yaml SIMULATE=1
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import draco

Batch = tuple[Tensor, Tensor]  # images (B, channels, height, width) in [0, 1], and classes (B,)


class Images(draco.Task):
    """A small convolutional network with dropout, trained on images that are shifted at random."""

    def __init__(self, file: str = "data/digits.npz", shift: int = 1) -> None:
        """Read the file; `shift` is the most pixels by which an image is moved while training."""
        self.shift, self.splits = shift, {}
        with np.load(file) as arrays:  # allow_pickle is False: nothing in it can run
            for split in ("train", "test"):
                images, classes = (torch.from_numpy(arrays[f"{name}_{split}"]) for name in "xy")
                images = images[:, None] if images.ndim == 3 else images.movedim(3, 1)
                self.splits[split] = images.float() / 255, classes.long()

    def model(self) -> nn.Module:
        """Return a network for images of the file's channels, of any size from 4x4."""
        images, classes = self.splits["train"]
        first = nn.Conv2d(images.shape[1], 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        second = nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(2)
        return nn.Sequential(*first, *second, nn.Flatten(), nn.Dropout(0.25), nn.Linear(256, int(classes.max()) + 1))

    def samples(self, split: str) -> Batch:
        """Return all images and classes of a split."""
        return self.splits[split]

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Move each image by up to `shift` pixels each way, drawn from the generator; what moves in is black."""
        images, classes = batch
        height, width = images.shape[2:]
        padded = F.pad(images, [self.shift] * 4)
        down, right = torch.randint(2 * self.shift + 1, (2, len(images), 1), generator=generator)
        rows, columns = down + torch.arange(height), right + torch.arange(width)  # (B, height), (B, width)
        samples = torch.arange(len(images))[:, None, None]
        return padded.movedim(1, 3)[samples, rows[:, :, None], columns[:, None]].movedim(3, 1), classes

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy of each image, (B,)."""
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of each image, and 1 where its class has the highest output."""
        images, classes = batch
        outputs = model(images)
        right = (outputs.argmax(1) == classes).float()
        return {"loss": F.cross_entropy(outputs, classes, reduction="none"), "accuracy": right}

    def labels(self, samples: Batch) -> Tensor:
        """Return the classes, so that a job may deal the samples out by class."""
        return samples[1]

    def flipped(self, batch: Batch) -> Batch:
        """Return a batch with false classes, for the attack label_flip."""
        images, classes = batch
        return images, int(self.splits["train"][1].max()) - classes


def write_digits(file: str) -> None:
    """Write scikit-learn's handwritten digits (UCI, E. Alpaydin and C. Kaynak, 1998) as such a file."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    (x_train, x_test), (y_train, y_test) = (
        np.split(each, [1500]) for each in ((digits.images * 255 / 16).round().astype(np.uint8), digits.target)
    )
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


if __name__ == "__main__":
    write_digits(sys.argv[1])
