"""What the guard of docs/torch.md costs beside plain DDP, and beside a replay on the same rank; and its digests.

Four ranks over gloo train the GPT of examples/train_gpt.py. All variants take turns in the same processes, with as many
micro-batches on each rank. With `every=1` the members of a group have the same ones, so half of the samples are
computed twice: that is no part of these ratios, which are of steps. With `every=10` each rank has its own, as in plain
DDP, and one step of ten is recomputed: that is in the ratio.
"""

import hashlib
import importlib.util
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.timing import Row, alternate
from draco.torch import Guard
from draco.torch.bits import digest, sketch

RANKS = 4
STEPS = 10  # of one turn: as many as every=10 needs for one check
ACCUMULATE = 2  # micro-batches of a step
Backward = Callable[[DistributedDataParallel, Tensor], None]


def rows(quick: bool) -> Iterator[Row]:
    """Yield the digests' times beside a copy of the same bytes, then those of the steps of every variant."""
    yield from _digests(10_000 if quick else 8_000_000, 1 if quick else 9)
    size = {"length": 32, "layers": 1, "heads": 4, "width": 32} if quick else SIZE
    with tempfile.TemporaryDirectory() as folder:
        # Forked, they need not import all this again; with a GPU autograd has threads, and nothing may fork.
        context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
        given = (Path(folder), size, 1 if quick else 5)
        ranks = [context.Process(target=_rank, args=(rank, *given)) for rank in range(RANKS)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        if any(rank.exitcode for rank in ranks):
            raise RuntimeError(f"guard: the ranks ended with {[rank.exitcode for rank in ranks]}")
        seconds: dict[str, float] = torch.load(Path(folder) / "seconds")
    parameters = sum(each.numel() for each in _example().GPT(**size).parameters())
    for name, taken in seconds.items():
        against = seconds["plain DDP"]
        yield Row(
            f"step: {name}", f"{RANKS} ranks, d={parameters:,}", taken / STEPS, "plain DDP", taken / against, None
        )


SIZE = {"length": 128, "layers": 4, "heads": 4, "width": 128}


def _digests(d: int, repeats: int) -> Iterator[Row]:
    gradient = torch.randn(d, generator=torch.Generator().manual_seed(1))
    copied = torch.empty_like(gradient)
    calls: dict[str, Callable[[], object]] = {
        "copy": lambda: copied.copy_(gradient),
        "digest": lambda: digest([gradient], 5),
        "sketch of 16 numbers": lambda: sketch([gradient], 5),
        "XOR (torch.hash_tensor)": lambda: torch.hash_tensor(gradient),
        "SHA-256": lambda: hashlib.sha256(gradient.numpy().data).digest(),
    }
    taken = alternate(calls, repeats)
    for name, seconds in taken.items():
        size = f"d={d:,}, {4 * d / seconds / 1e9:.1f} GB/s"
        yield Row(f"gradient: {name}", size, seconds, "copy", seconds / taken["copy"], None)


def _example() -> ModuleType:
    """Return the example's module, which is no package's."""
    path = Path(__file__).parents[1] / "examples/train_gpt.py"
    spec = importlib.util.spec_from_file_location("train_gpt", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rank(rank: int, folder: Path, size: dict[str, int], repeats: int) -> None:
    """Train all variants in turn; rank 0 writes their seconds."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", meeting, timedelta(seconds=120), world_size=RANKS, rank=rank)
    example = _example()
    dataset = example.Text(size["length"])
    calls = {
        "plain DDP": _training(example, dataset, size, rank, None, _plain),
        "guard, r = 2, every = 1": _training(example, dataset, size, rank, 1, _plain),
        "guard, r = 2, every = 10": _training(example, dataset, size, rank, 10, _plain),
        "replay of every first micro-batch": _training(example, dataset, size, rank, None, _replayed),
    }
    seconds = alternate(calls, repeats)
    if rank == 0:
        torch.save(seconds, folder / "seconds")
    dist.barrier()
    dist.destroy_process_group()


def _training(
    example: ModuleType, dataset: Any, size: dict[str, int], rank: int, every: int | None, first: Backward
) -> Callable[[], None]:
    """Return a call that trains STEPS steps, guarded where `every` is given."""
    torch.manual_seed(1)
    model = DistributedDataParallel(example.GPT(**size))
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=3e-4)
    place = rank
    if every is not None:
        guard = Guard(model, redundancy=2, every=every)
        optimizer, place = guard.optimizer(optimizer), guard.layout.group_of(rank)  # as guard.sampler deals samples
    batches = [
        torch.stack([dataset[(8 * (RANKS * number + place) + i) % len(dataset)] for i in range(8)])
        for number in range(STEPS * ACCUMULATE)
    ]

    def train() -> None:
        for number, batch in enumerate(batches):
            last = number % ACCUMULATE == ACCUMULATE - 1
            with nullcontext() if last else model.no_sync():
                (_plain if last else first)(model, batch)
            if last:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        dist.barrier()

    return train


def _plain(model: DistributedDataParallel, batch: Tensor) -> None:
    (model(batch) / ACCUMULATE).backward()


def _replayed(model: DistributedDataParallel, batch: Tensor) -> None:
    """Compute the first gradient of a step twice and compare XORs of its bits, as torchtitan's replayer does."""
    found = []
    for _ in range(2):
        model.zero_grad()
        _plain(model, batch)
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        found.append(torch.stack([torch.hash_tensor(gradient) for gradient in gradients]))
    unlike = (found[0].view(torch.int64) != found[1].view(torch.int64)).any().int()
    dist.all_reduce(unlike)
    if unlike:
        raise RuntimeError("replay: a gradient was not computed to the same bits again")
