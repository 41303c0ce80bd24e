"""The contract of a task: what is trained. A model, its samples, and the loss of each sample.

Draco decides which samples a step takes, who computes them, and from which generators everything random is drawn. A
task reads no global random state once it is built, so that every worker computes the same.

Shapes: B samples in a batch. A batch is whatever `loss` takes: a tensor, or a tuple, list or dict of tensors whose
first dimension is B.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from draco.lazy import Tensor, torch


class Task:
    """What is trained; a job names a subclass, `task: my_task.py:Digits`, and its `options` are the constructor's.

    A subclass has `model`, `samples` and `loss`. The rest has defaults.
    """

    # The loss of each sample depends on that sample and the parameters alone. A task of which that is not true, such
    # as one that compares the samples of a batch, sets it to False; its `loss` is then one number, the batch's mean.
    per_sample: bool = True

    def model(self) -> torch.nn.Module:
        """Return the model with its initial weights, float32 where they are trained.

        It is called with torch's, numpy's and Python's global generators seeded by the job. Parameters that do not
        require a gradient are frozen: every process builds them, and nobody sends them. Dropout layers
        (torch.nn.Dropout) get their masks from Draco.
        """
        raise NotImplementedError

    def samples(self, split: str) -> Any:
        """Return the samples of "train" or "test", in an order that is always the same.

        Either tensors of N rows, one or a tuple or dict of them, or anything with `len` and an item for each whole
        number below it, such as a torch.utils.data.Dataset, whose items `collate` makes a batch of. It is called with
        the global generators seeded by the job, once in every process.
        """
        raise NotImplementedError

    def loss(self, model: torch.nn.Module, batch: Any) -> Tensor:
        """Return the loss of each sample of a batch, (B,); their mean where `per_sample` is False."""
        raise NotImplementedError

    def evaluate(self, model: torch.nn.Module, batch: Any) -> Mapping[str, Tensor]:
        """Return named figures of each sample of a batch, (B,) each, "loss" among them; a split's are their means."""
        return {"loss": self.loss(model, batch)}

    def augment(self, batch: Any, generator: torch.Generator) -> Any:
        """Return a training batch with what is random in it, drawn from `generator` alone. It is on the CPU."""
        return batch

    def collate(self, items: list[Any]) -> Any:
        """Return the batch of some items of a data set; the default stacks them as torch's DataLoader does."""
        collated: Any = torch.utils.data.default_collate(items)
        return collated

    def batch(self, samples: Any, indices: Tensor) -> Any:
        """Return the samples at `indices` (B,) as a batch on the CPU; to be replaced where there is a faster way."""
        if isinstance(samples, torch.Tensor):
            return samples[indices]
        if isinstance(samples, dict):
            return {name: rows[indices] for name, rows in samples.items()}
        if isinstance(samples, tuple):
            return tuple(rows[indices] for rows in samples)
        fetch = getattr(samples, "__getitems__", None)  # torch's own name for fetching many at once
        places = indices.tolist()
        return self.collate(list(fetch(places)) if fetch else [samples[place] for place in places])

    def drawn(self, samples: Any, indices: Tensor, generator: torch.Generator) -> Any:
        """Return a training batch: `batch`, then `augment`; to be replaced where both go together."""
        return self.augment(self.batch(samples, indices), generator)

    def labels(self, samples: Any) -> Tensor | None:
        """Return the class of each sample, (N,) int64, by which `data.split` deals them out; None: they have none."""
        return None

    def flipped(self, batch: Any) -> Any:
        """Return a batch with label C - 1 - y for y of C classes, for the attack `label_flip`; None: it has none."""
        return None


def count(samples: Any) -> int:
    """Return N, the number of samples that `Task.samples` returned."""
    if isinstance(samples, dict):
        return min((len(rows) for rows in samples.values()), default=0)
    if isinstance(samples, tuple):
        return min((len(rows) for rows in samples), default=0)
    return len(samples)
