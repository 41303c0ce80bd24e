"""Tasks with one mistake each. The line that the first check has to name ends with the comment `HERE`."""

import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from draco.tasks import Task

N = 40
CALLS = [0]


def rows(seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(N, 4, generator=source), torch.randint(3, (N,), generator=source)


class Right(Task):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def samples(self, split: str) -> Any:
        return rows(1 if split == "train" else 2)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Items(Dataset):
    """A data set of single samples, with a fault where `item` has one."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, place: int) -> Any:
        return self.item(place)

    def item(self, place: int) -> Any:
        return torch.full((4,), float(place)), place % 3


# model()


class NoModule(Right):
    def model(self) -> Any:  # HERE
        return lambda x: x


class ModelRaises(Right):
    def model(self) -> nn.Module:
        return nn.Linear(4, "three")  # type: ignore[arg-type]  # HERE


class AllFrozen(Right):
    def model(self) -> nn.Module:  # HERE
        return super().model().requires_grad_(False)


class Doubles(Right):
    def model(self) -> nn.Module:  # HERE
        return super().model().double()


class Elsewhere(Right):
    def model(self) -> nn.Module:  # HERE
        return super().model().to("meta")


class Unseeded(Right):
    def model(self) -> nn.Module:  # HERE
        model = super().model()
        with torch.no_grad():
            model[2].weight.copy_(torch.from_numpy(np.random.default_rng().normal(size=(3, 8))))
        return model


class OtherDropout(Right):
    def model(self) -> nn.Module:  # HERE
        return nn.Sequential(nn.Linear(4, 8), nn.AlphaDropout(0.1), nn.Linear(8, 3))


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend, self.out = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attend(x[:, None], x[:, None], x[:, None])[0][:, 0])


class Attention(Right):
    def model(self) -> nn.Module:  # HERE
        return Attends()


class OptimizedModule(nn.Sequential):
    """Called as what torch.compile returns, whose import takes seconds."""


class Compiled(Right):
    def model(self) -> nn.Module:  # HERE
        return OptimizedModule(super().model())


class Parallel(Right):
    def model(self) -> nn.Module:  # HERE
        return nn.DataParallel(super().model())


class Lazy(Right):
    def model(self) -> nn.Module:  # HERE
        return nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3))


class Cumulative(Right):
    def model(self) -> nn.Module:  # HERE
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 3))


class Average(nn.Module):
    """Divides by a running size of its inputs, as some normalisations of one's own do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.size = 0.9 * self.size + 0.1 * x.detach().abs().mean()
        return x / self.size


class Carries(Right):
    def model(self) -> nn.Module:  # HERE
        return nn.Sequential(nn.Linear(4, 8), Average(), nn.Linear(8, 3))


# samples(), batch(), collate()


class SamplesRaise(Right):
    def samples(self, split: str) -> Any:
        raise FileNotFoundError("no such file: data.csv")  # HERE


class Nothing(Right):
    def samples(self, split: str) -> Any:  # HERE
        rows()


class Stream(Right):
    def samples(self, split: str) -> Iterator[Tensor]:  # HERE
        yield rows()[0]


class Empty(Right):
    def samples(self, split: str) -> Any:  # HERE
        return tuple(each[:0] for each in rows())


class Few(Right):
    def samples(self, split: str) -> Any:  # HERE
        return tuple(each[:5] for each in rows())


class AList(Right):
    def samples(self, split: str) -> Any:  # HERE
        return [*rows()]


class UnlikeRows(Right):
    def samples(self, split: str) -> Any:  # HERE
        x, y = rows()
        return {"x": x, "y": y[:-1]}


class Arrays(Right):
    def samples(self, split: str) -> Any:  # HERE
        return tuple(each.numpy() for each in rows())


class Shuffled(Right):
    def samples(self, split: str) -> Any:  # HERE
        order = np.random.default_rng().permutation(N)
        return tuple(each[order] for each in rows())


class BadItem(Right):
    def samples(self, split: str) -> Any:
        class Broken(Items):
            def item(self, place: int) -> Any:
                return torch.ones(4), 1 / (place - (N - 1))  # HERE

        return Broken()


class Ragged(Right):
    def samples(self, split: str) -> Any:  # HERE
        class Broken(Items):
            def item(self, place: int) -> Any:
                return torch.ones(4 + place % 2), 1

        return Broken()


class Named(Right):
    def samples(self, split: str) -> Any:  # HERE
        class Broken(Items):
            def item(self, place: int) -> Any:
                return torch.ones(4), 1, f"image-{place}.png"

        return Broken()


class RandomItems(Right):
    def samples(self, split: str) -> Any:
        class Broken(Items):
            def item(self, place: int) -> Any:
                shift = random.random()  # HERE
                return torch.ones(4) * shift, 1

        return Broken()


class Timed(Right):
    def samples(self, split: str) -> Any:  # HERE
        class Broken(Items):
            def item(self, place: int) -> Any:
                return torch.full((4,), time.perf_counter_ns() % 1e6), 1

        return Broken()


class OneTooMany(Right):
    def samples(self, split: str) -> Any:
        return Items()

    def collate(self, items: list[Any]) -> Any:  # HERE
        return torch.ones(len(items) + 1, 4)


# loss()


class LossRaises(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0][:, 1:]), batch[1])  # HERE


class NoTensor(Right):
    def loss(self, model: nn.Module, batch: Any) -> Any:  # HERE
        return super().loss(model, batch).mean().item()


class Mean(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # HERE
        return F.cross_entropy(model(batch[0]), batch[1])


class PerToken(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # HERE
        return model(batch[0]).square()


class Column(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # HERE
        return (model(batch[0])[:, :1] - batch[1][:, None]).square()


class Vector(Right):
    per_sample = False

    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # HERE
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Whole(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # HERE
        return (model(batch[0]).argmax(1) != batch[1]).long()


class Detached(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # HERE
        with torch.no_grad():
            return super().loss(model, batch)


class Infinite(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # HERE
        return model(batch[0]).square().sum(1) + torch.log(torch.zeros(len(batch[0])))


class InfiniteModel(Right):
    def model(self) -> nn.Module:
        model = super().model()
        nn.init.constant_(model[2].weight, float("nan"))
        return model

    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # HERE
        return super().loss(model, batch)


class InfiniteSample(Right):
    def samples(self, split: str) -> Any:
        x, y = rows()
        return x.index_fill(0, torch.arange(0, N, 2), float("inf")), y

    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # HERE
        return super().loss(model, batch)


class InfiniteGradient(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # HERE
        return (model(batch[0]) * 0).sum(1).sqrt()


class Functional(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        outputs = model(
            F.dropout(batch[0], 0.5)  # HERE
        )
        return F.cross_entropy(outputs, batch[1], reduction="none")


class Noise(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        noise = torch.randn_like(batch[0])  # HERE
        return F.cross_entropy(model(batch[0] + noise), batch[1], reduction="none")


class NumpyNoise(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        scale = np.random.uniform(0.5, 1.5)  # HERE
        return super().loss(model, batch) * scale


class PythonNoise(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        if random.random() < 2:  # HERE
            return super().loss(model, batch)
        return super().loss(model, batch) * 2


class LayerDrop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(()) + 1)  # HERE


class DropsLayers(Right):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), LayerDrop())


class Counts(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # HERE
        CALLS[0] += 1
        return super().loss(model, batch) * (1 + 1 / CALLS[0])


class Updates(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # HERE
        with torch.no_grad():
            next(model.parameters()).mul_(0.9)
        return super().loss(model, batch)


class DefaultDtype(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # HERE
        torch.set_default_dtype(torch.float64)
        return super().loss(model, batch)


class Contrast(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # HERE
        outputs = model(batch[0])
        return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)), reduction="none")


class OwnNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0, correction=0) + 1e-3)


class MixesInModel(Right):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), OwnNorm(), nn.Linear(8, 3))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # HERE
        return super().loss(model, batch)


# augment(), evaluate(), labels(), flipped()


class AugmentsGlobally(Right):
    def augment(self, batch: Any, generator: torch.Generator) -> Any:
        return batch[0] + torch.randn(batch[0].shape), batch[1]  # HERE


class AugmentsAnew(Right):
    def augment(self, batch: Any, generator: torch.Generator) -> Any:  # HERE
        return batch[0] + torch.randn(batch[0].shape, generator=torch.Generator().manual_seed(time.time_ns())), batch[1]


class AugmentsTwice(Right):
    def augment(self, batch: Any, generator: torch.Generator) -> Any:  # HERE
        return tuple(torch.cat([each, each]) for each in batch)


class AugmentsInPlace(Right):
    held = rows()

    def samples(self, split: str) -> Any:
        return self.held

    def batch(self, samples: Any, indices: Tensor) -> Any:
        first = int(indices[0])
        return tuple(each[first : first + len(indices)] for each in samples)

    def augment(self, batch: Any, generator: torch.Generator) -> Any:  # HERE
        batch[0].add_(1)
        return batch


class NoDict(Right):
    def evaluate(self, model: nn.Module, batch: Any) -> Any:  # HERE
        return self.loss(model, batch)


class NoLoss(Right):
    def evaluate(self, model: nn.Module, batch: Any) -> Any:  # HERE
        return {"accuracy": model(batch[0]).argmax(1) == batch[1]}


class Accuracy(Right):
    def evaluate(self, model: nn.Module, batch: Any) -> Any:  # HERE
        return {"loss": self.loss(model, batch), "accuracy": (model(batch[0]).argmax(1) == batch[1]).float().mean()}


class OddName(Right):
    def evaluate(self, model: nn.Module, batch: Any) -> Any:  # HERE
        return {"loss": self.loss(model, batch), "top-1 (%)": self.loss(model, batch)}


# loss(), in a job that computes in float64


class Narrowed(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch[0]).float()  # HERE
        return F.cross_entropy(scores.double(), batch[1], reduction="none")


class FixedFormat(Right):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return -F.log_softmax(model(batch[0]), 1) @ torch.ones(3)  # HERE
