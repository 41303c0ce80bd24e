"""A GPT on bytes, trained by plain PyTorch: DistributedDataParallel, gradient accumulation, clipping, a schedule.

    torchrun --nproc-per-node 4 examples/train_gpt.py

`train_gpt_guarded.py` is the same script with Draco's guard, which takes four lines (docs/torch.md). The text is the
reference of the Python language, which every Python brings along (pydoc_data.topics; licence PSF-2.0).
"""

import argparse
import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pydoc_data.topics import topics

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset


class Text(Dataset[Tensor]):
    """Sequences of `length` + 1 bytes, each beginning with the last byte of the one before."""

    def __init__(self, length: int) -> None:
        """Cut the text into sequences."""
        text = torch.frombuffer(bytearray("".join(topics.values()).encode()), dtype=torch.uint8)
        self.sequences = text.unfold(0, length + 1, length)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.sequences)

    def __getitem__(self, index: int) -> Tensor:
        """Return one of them, int64 (length + 1,)."""
        return self.sequences[index].long()


class GPT(nn.Module):
    """A transformer that gives its own loss, the mean cross-entropy of each next byte in nats."""

    def __init__(self, length: int, layers: int, heads: int, width: int) -> None:
        """`length` bytes are seen at most."""
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, width), nn.Embedding(length, width)
        for table in (self.bytes, self.places):
            nn.init.normal_(table.weight, std=0.02)
        block = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(block, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        """Return the loss for bytes (B, length + 1)."""
        x = self.bytes(text[:, :-1]) + self.places.weight
        logits = F.linear(self.body(x, self.mask, is_causal=True), self.bytes.weight)
        return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


def endless(loader: DataLoader[Tensor], sampler: torch.utils.data.DistributedSampler[Tensor]) -> Iterator[Tensor]:
    """Yield micro-batches, epoch after epoch, in another order in each."""
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        yield from loader


def main() -> None:
    """Train, and save the weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8, help="sequences of a micro-batch, on each rank")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches of a step")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--out", help="where the weights go")
    args = parser.parse_args()

    dist.init_process_group()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    torch.manual_seed(1)
    model = GPT(args.length, args.layers, 4, args.width).to(device)
    model = DistributedDataParallel(model, device_ids=[device.index] if gpu else None)
    dataset = Text(args.length)
    sampler = torch.utils.data.DistributedSampler(dataset)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)

    loader = DataLoader(dataset, args.batch, sampler=sampler, drop_last=True)
    batches = endless(loader, sampler)
    for step in range(1, args.steps + 1):
        total = 0.0
        for micro in range(args.accumulate):
            last = micro == args.accumulate - 1
            with nullcontext() if last else model.no_sync():
                loss = model(next(batches).to(device)) / args.accumulate
                loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0 and step % 10 == 0:
            sys.stderr.write(f"step {step}: loss {total:.4f}\n")
    if args.out and dist.get_rank() == 0:
        torch.save(model.module.state_dict(), args.out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
