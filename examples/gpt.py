"""A small GPT that learns to write bytes: causal attention, learned positions, tied embeddings, dropout.

The text is the reference of the Python language, 466 kB that every Python brings along as its interactive help (the
module pydoc_data.topics; licence PSF-2.0). The last tenth is for testing. A sample is one sequence, and its loss is the
mean over its bytes, in nats. For a text of your own replace the one line that reads it.

    make train JOB=examples/gpt.yaml SIMULATE=1
"""

import math
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import draco


class Block(nn.Module):
    """Causal attention of several heads, then two dense layers, each added to what comes in."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """`width` numbers a byte, shared out evenly to the heads."""
        super().__init__()
        self.heads = heads
        self.norm, self.mixed, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        dense = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.dense = nn.Sequential(nn.LayerNorm(width), *dense, nn.Dropout(dropout))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, length, width) for (B, length, width)."""
        queries, keys, values = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.mixed(self.norm(x)).chunk(3, 2)
        )
        # Its own dropout_p would draw from global random state, which no other worker shares: it stays 0.
        seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.dropout(self.out(seen.transpose(1, 2).flatten(2)))
        return x + self.dense(x)


class GPT(nn.Module):
    """A transformer that gives the logits of each next byte."""

    def __init__(self, length: int, layers: int, heads: int, width: int, dropout: float) -> None:
        """`length` bytes are seen at most."""
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, width), nn.Embedding(length, width)
        blocks = (Block(width, heads, dropout) for _ in range(layers))
        self.body = nn.Sequential(nn.Dropout(dropout), *blocks, nn.LayerNorm(width))
        for table in (self.bytes, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        """Return logits (B, length, 256) for bytes (B, length)."""
        x = self.body(self.bytes(text) + self.places.weight[: text.shape[1]])
        return F.linear(x, self.bytes.weight)  # tied: the table that reads bytes also writes them


class Text(draco.Task):
    """Sequences of `length` bytes, each predicted from those before it."""

    def __init__(self, length: int = 64, layers: int = 2, heads: int = 4, width: int = 64, dropout: float = 0.1):
        """Take the sizes of the model, which are those of GPT."""
        self.length, self.sizes = length, (length, layers, heads, width, dropout)

    def model(self) -> nn.Module:
        """Return the model with its initial weights."""
        return GPT(*self.sizes)

    def samples(self, split: str) -> Tensor:
        """Return sequences, (N, length + 1) uint8: each begins with the last byte of the one before."""
        text = torch.frombuffer(bytearray("".join(topics.values()).encode()), dtype=torch.uint8)
        sequences = text.unfold(0, self.length + 1, self.length)
        kept = len(sequences) * 9 // 10
        return sequences[:kept] if split == "train" else sequences[kept:]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Return the mean cross-entropy of each sequence's bytes, (B,), in nats."""
        text = batch.long()
        logits = model(text[:, :-1])
        return F.cross_entropy(logits.transpose(1, 2), text[:, 1:], reduction="none").mean(1)

    def evaluate(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """Return the loss of each sequence, also in bits per byte."""
        loss = self.loss(model, batch)
        return {"loss": loss, "bits_per_byte": loss / math.log(2)}
