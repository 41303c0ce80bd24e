"""What a replay costs beside the gradient that it checks, and how many numbers are sent for it.

    python -m benchmarks.replay
    python -m benchmarks.replay resnet18

Gradient, recording, replay and its floor take turns on one thread. Seconds are those of the processor that the thread
had, and the fastest of several turns counts: other processes disturb a turn, and none makes one faster. The floor is a
replay that believes every product: what is left is what a checker must compute itself.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Row
from draco import models
from draco.replay import record, replay
from draco.replay.mode import ProductMode
from draco.replay.products import Places, from_numbers

T = TypeVar("T")
HEADS = 4
TOKENS = 128


class Block(nn.Module):
    """A transformer's block with attention of several operations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (sequences, tokens, width) with what it attends to and thinks added."""
        each = x.shape[-1] // HEADS
        q, k, v = self.qkv(self.first(x)).view(*x.shape[:2], 3, HEADS, each).permute(2, 0, 3, 1, 4)
        attended = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(each), -1) @ v
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        added: Tensor = self.down(F.gelu(self.up(self.second(x))))
        return x + added


def _gpt(width: int) -> nn.Module:
    blocks = (Block(width) for _ in range(4))
    return nn.Sequential(nn.Embedding(1000, width), *blocks, nn.Linear(width, 1000))


class Case(NamedTuple):
    """A model and a batch of it."""

    name: str
    size: str
    build: Callable[[], tuple[nn.Module, Tensor, Tensor]]  # model, inputs, labels
    most: float | None  # the replay must take at most this share of a gradient


def _images(name: str, shape: tuple[int, int, int], batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    return models.build_model(name, shape, 10, 7), torch.randn(batch, *shape), torch.randint(10, (batch,))


def _text(width: int) -> tuple[nn.Module, Tensor, Tensor]:
    return _gpt(width), torch.randint(1000, (4, TOKENS)), torch.randint(1000, (4 * TOKENS,))


CASES = (
    Case("lenet", "48 images", lambda: _images("lenet", (1, 28, 28), 48), None),
    Case("resnet18", "12 images", lambda: _images("resnet18", (3, 32, 32), 12), 0.2),
    Case("resnet18", "48 images", lambda: _images("resnet18", (3, 32, 32), 48), None),
    Case("gpt 4x256", "512 tokens", lambda: _text(256), 0.35),
    Case("gpt 4x768", "512 tokens", lambda: _text(768), 0.2),
)


class _Believing(ProductMode):
    """Takes products from a transcript without a check."""

    def __init__(self, transcript: Tensor) -> None:
        super().__init__()
        self.left = transcript

    def product(self, op: Any, args: Sequence[Any], options: dict[str, Any], found: Places) -> Sequence[Any]:
        """Return the outputs of a product as they came."""
        return [place and self._next(place.numbers, place) for place in found]

    def _next(self, numbers: int, place: Any) -> Tensor:
        taken, self.left = self.left[:numbers], self.left[numbers:]
        return from_numbers(taken, place)


class Measured(NamedTuple):
    """Figures of one case."""

    gradient_s: float
    replay_s: float
    floor_s: float
    record_s: float
    sent: float  # numbers of the transcript / d
    worst: float  # residual of an honest worker, over all replays
    where: str


def measured(case: Case, repeats: int) -> Measured:
    """Measure one case.

    Raises:
        AssertionError: the replayed gradient has other bits than the worker's.
    """
    torch.manual_seed(0)
    model, inputs, labels = case.build()
    parameters = list(model.train().parameters())

    def gradient() -> tuple[Tensor, ...]:
        outputs = model(inputs)
        return torch.autograd.grad(F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), labels), parameters)

    def unchecked() -> tuple[Tensor, ...]:
        with _Believing(transcript):
            return gradient()

    worker, transcript = record(gradient)
    fastest = [math.inf] * 4
    worst, where = 0.0, ""
    for repeat in range(repeats):
        generator = torch.Generator().manual_seed(repeat)
        seconds, (again, verdict) = _timed(lambda: replay(gradient, transcript, generator=generator))  # noqa: B023
        assert all(torch.equal(a, b) for a, b in zip(worker, again, strict=True)), "other bits than the worker's"
        if verdict.worst > worst:
            worst, where = verdict.worst, verdict.where
        others = [_timed(call)[0] for call in (gradient, unchecked, lambda: record(gradient, room=len(transcript)))]
        fastest = [min(pair) for pair in zip(fastest, [others[0], seconds, *others[1:]], strict=True)]
    numbers = sum(parameter.numel() for parameter in parameters)
    gradient_s, replay_s, floor_s, record_s = fastest
    return Measured(gradient_s, replay_s, floor_s, record_s, len(transcript) / numbers, worst, where)


def rows(quick: bool) -> Iterator[Row]:
    """Yield what `draco bench` shows of it."""
    for case in CASES[:1] if quick else CASES:
        found = measured(case, 1 if quick else 7)
        size = f"{case.size}, sends {found.sent:.1f} d, rounding {found.worst:.0e}"
        yield Row(f"{case.name} replay", size, found.replay_s, "its gradient", _ratio(found), case.most)


def _ratio(found: Measured) -> float:
    return found.replay_s / found.gradient_s


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    began = time.thread_time()
    result = call()
    return time.thread_time() - began, result


def main(only: str, repeats: int) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| model, batch | gradient ms | replay / gradient | floor | record / gradient | sent / d | worst residual |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for case in CASES:
        if only not in case.name:
            continue
        found = measured(case, repeats)
        parts = (found.replay_s, found.floor_s, found.record_s)
        print(
            f"| {case.name}, {case.size} | {found.gradient_s * 1e3:.0f} | "
            + "".join(f"{part / found.gradient_s:.2f} | " for part in parts)
            + f"{found.sent:.1f} | {found.worst:.0e} ({found.where}) |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "", int(sys.argv[2]) if len(sys.argv) > 2 else 11)
