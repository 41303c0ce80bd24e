"""The built-in task: one of Draco's models classifies the images of one of its data sets, by cross entropy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draco import data, models
from draco.data import batches
from draco.lazy import Tensor, torch
from draco.tasks.task import Task

if TYPE_CHECKING:
    from torch import nn

Batch = tuple[Tensor, Tensor]  # images (B, c, h, w) float32, normalised, and labels (B,) int64


class Images:
    """The images and labels of a split, with their number."""

    def __init__(self, split: data.Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split.labels)


class ImageClassification(Task):
    """The classification of images (c, h, w) in C classes; see `draco.models` and `draco.data`."""

    def __init__(
        self, model: str, dataset: str, root: Path, seed: int, *, augment: bool | None = None, own: bool = False
    ) -> None:
        """`augment`: None stands for what the data set usually takes; `own`: the files are the user's."""
        self.network, self.dataset, self.root, self.seed, self.own = model, dataset, root, seed, own
        self.info = data.DATASETS[dataset]
        self.augments = self.info.augment if augment is None else augment

    def model(self) -> nn.Module:
        """Return the network with its initial weights, which depend on the seed only."""
        return models.build_model(self.network, self.info.shape, self.info.classes, self.seed)

    def samples(self, split: str) -> Images:
        """Return the images of a split, memory-mapped."""
        return Images(data.load(self.dataset, self.root, split, own=self.own))

    def batch(self, samples: Images, indices: Tensor) -> Batch:
        """Return the images and labels at `indices`, normalised."""
        return batches.batch(samples.split, indices, None)

    def drawn(self, samples: Images, indices: Tensor, generator: torch.Generator) -> Batch:
        """Return the same, cropped and flipped at random where the data set takes that."""
        return batches.batch(samples.split, indices, generator if self.augments else None)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross entropy of each image, (B,), in nats."""
        images, labels = batch
        return torch.nn.functional.cross_entropy(model(images), labels, reduction="none")

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return for each image whether its label is the highest output, or among the five highest, and its loss."""
        images, labels = batch
        outputs = model(images)
        ranked = outputs.topk(min(5, outputs.shape[1]), dim=1).indices == labels[:, None]
        loss = torch.nn.functional.cross_entropy(outputs, labels, reduction="none")
        return {"top1": ranked[:, 0], "top5": ranked.any(1), "loss": loss}

    def labels(self, samples: Images) -> Tensor:
        """Return the class of each image, (N,)."""
        return samples.split.labels

    def flipped(self, batch: Batch) -> Any:
        """Return a batch with C - 1 - y in place of every label y."""
        images, labels = batch
        return images, self.info.classes - 1 - labels
