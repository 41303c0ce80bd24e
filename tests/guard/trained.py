"""Ranks that train a small model with a guard, over gloo: `python trained.py FOLDER WORLD:NAME,NAME ...`.

The program imports torch once and forks the ranks of each set. Each rank plays the scenarios of `scenarios.py` in
order, and writes what it saw into FOLDER/set/rank.json.
"""

import hashlib
import json
import os
import random
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # before the ranks are forked
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import draco.torch
from draco.errors import DracoError

STEPS = 6
Guard = draco.torch.Guard  # before the ranks are forked


class Classifier(nn.Module):
    """Ten numbers to three classes, with what makes recomputation hard: dropout, BatchNorm, a parameter used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.norm = nn.Linear(10, 16), nn.Linear(16, 16), nn.BatchNorm1d(16)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.middle(self.norm(self.middle(x))))
        return self.last(nn.functional.dropout(x, 0.2, self.training))


class Frugal(nn.Module):
    """A model with activation checkpointing, and a parameter that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.unused = Classifier(), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


class WithLoss(nn.Module):
    """A model that returns its loss, as scripts for language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Classifier()

    def forward(self, x: Tensor, *, target: Tensor) -> dict[str, Any]:
        return {"loss": nn.functional.cross_entropy(self.inner(x), target), "note": "a value that is no tensor"}


@dataclass
class Training:
    """One training. A fault is called before each step, with this object and the step, from 1."""

    redundancy: int = 2
    loss_inside: bool = False
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    options: dict[str, Any] = field(default_factory=lambda: {"lr": 0.01})
    guard_options: dict[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    sync_always: bool = False
    zeroed: bool = False
    clip: bool = False
    scale: bool = False
    autocast: bool = False
    compiled: bool = False
    bucket_view: bool = False
    frugal: bool = False
    steps: int = STEPS
    fault: Callable[["Training", int], None] | None = None
    plain: bool = False  # DDP without a guard on the first W / r ranks, or on all if the guard checks a sample of steps

    def run(self) -> dict[str, Any]:
        """Train, and return what this rank has seen."""
        rank, count = dist.get_rank(), dist.get_world_size()
        count = count if self.guard_options.get("every", 1) > 1 else count // self.redundancy
        torch.manual_seed(7)
        self.model: Any = WithLoss() if self.loss_inside else Frugal() if self.frugal else Classifier()
        inner = torch.compile(self.model, backend="aot_eager") if self.compiled else self.model
        group = dist.new_group(list(range(count))) if self.plain else None
        if self.plain and rank >= count:
            return {}
        self.ddp = DistributedDataParallel(
            inner,
            process_group=group,
            gradient_as_bucket_view=self.bucket_view,
            bucket_cap_mb=None if self.compiled else 0.001,  # several buckets
            find_unused_parameters=self.frugal,
        )
        self.opt = self.optimizer(self.model.parameters(), **self.options)
        dataset = TensorDataset(torch.randn(96, 10), torch.randint(0, 3, (96,)))
        if self.plain:
            sampler: Any = DistributedSampler(dataset, num_replicas=count, rank=rank)
            torch.manual_seed(5 * count + rank)
        else:
            self.guard = Guard(self.ddp, **{"redundancy": self.redundancy, "timeout_s": 60, **self.guard_options})
            sampler = self.guard.sampler(dataset)
            self.opt = self.guard.optimizer(self.opt)
            self.guard.seed(5)
        self._train(DataLoader(dataset, batch_size=4, sampler=sampler))
        bits = hash_of([value.detach() for value in self.model.parameters()])
        buffers = hash_of(list(self.model.buffers()))
        return {"bits": bits, "buffers": buffers, **({} if self.plain else self._seen())}

    def _train(self, loader: DataLoader[Any]) -> None:
        """Make all steps; each has `accumulate` batches."""
        scaler = torch.amp.GradScaler("cpu", enabled=self.scale, init_scale=1024.0)
        batches = iter(list(loader) * 3)
        for step in range(1, self.steps + 1):
            self.opt.zero_grad(set_to_none=not self.zeroed)
            if self.fault:
                self.fault(self, step)
            for number in range(self.accumulate):
                x, target = next(batches)
                self.ddp.require_backward_grad_sync = self.sync_always or number == self.accumulate - 1
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
                    if self.loss_inside:
                        loss = self.ddp(x, target=target)["loss"]
                    else:
                        loss = nn.functional.cross_entropy(self.ddp(x), target)
                scaler.scale(loss / self.accumulate).backward()
            if self.clip:
                scaler.unscale_(self.opt)
                nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
            scaler.step(self.opt)
            scaler.update()

    def _seen(self) -> dict[str, Any]:
        """Return the guard's word."""
        guard = self.guard
        suspects = {
            rank: [[e.step, e.since, e.what, e.found, e.repaired] for e in v] for rank, v in guard.suspects.items()
        }
        counts = [guard.steps, guard.checked, guard.disputes, guard.repaired]
        return {"suspects": suspects, "counts": counts}


def hash_of(tensors: list[Tensor]) -> str:
    """Return a short name of tensors' bits."""
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


def flipped(tensor: Tensor, bit: int = 20) -> Tensor:
    """Return a copy of a float32 tensor with one bit of its largest number flipped."""
    copy = tensor.detach().clone().contiguous()
    copy.view(-1).view(torch.int32)[copy.abs().argmax()] ^= 1 << bit
    return copy


def play(rank: int, world: int, folder: Path, names: list[str]) -> None:
    """Be one rank."""
    import scenarios

    torch.set_num_threads(1)
    random.seed(3)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    seen: dict[str, Any] = {}
    for name in names:
        try:
            seen[name] = getattr(scenarios, name)()
        except DracoError as error:
            seen[name] = {"error": type(error).__name__, "message": str(error), "ranks": getattr(error, "ranks", None)}
        (folder / f"{rank}.json").write_text(json.dumps(seen))


def main() -> None:
    """Play the first set of ranks, then the others together, which mostly wait: each argument is WORLD:NAME,NAME."""
    torch.compile(torch.neg, backend="aot_eager")(torch.ones(1))  # imports what each rank would import for itself
    torch._dynamo.reset()
    for numbers in (range(1), range(1, len(sys.argv) - 2)):
        for child in [child for number in numbers for child in start(number, sys.argv[number + 2])]:
            os.waitpid(child, 0)


def start(number: int, told: str) -> list[int]:
    """Start the ranks of a set and return their processes."""
    world, _, names = told.partition(":")
    folder = Path(sys.argv[1]) / str(number)
    folder.mkdir()
    return [fork(rank, int(world), folder, names.split(",")) for rank in range(int(world))]


def fork(rank: int, world: int, folder: Path, names: list[str]) -> int:
    """Start one rank and return its process; it leaves a traceback in RANK.txt if it fails."""
    if child := os.fork():
        return child
    try:
        play(rank, world, folder, names)
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
