"""The election scheme: a worker sends the majority of its partitions' signs, one bit a coordinate; the server votes.

Source: Sohn, Han, Choi & Moon, Election Coding for Distributed Learning: Protecting SignSGD Against Byzantine Attacks,
NeurIPS 2020 (arXiv:1910.06093), on top of signSGD with majority vote (Bernstein, Zhao, Azizzadenesheli & Anandkumar,
2018, arXiv:1810.05291). The result is no mean: it is the sign of the majority of the k partitions' signs. So a learning
rate is the length of a step in every coordinate.

Promise: with the deterministic design the result is that majority exactly, whatever up to s Byzantine workers send. It
holds in every coordinate where no partition has a zero and one sign has more partitions than the other. With a
Bernoulli design it holds with high probability only.

Zeros and ties: a zero has no vote. A worker whose votes tie must still send a bit. It sends + where row + coordinate is
even, so that the ties of many workers cancel in coordinates that no sample moves. At the server a tie is 0, no step.
(The paper's program computes with sign(0) = 0, for which one bit has no third value.)

A reply begins with the float32 mean of its partitions' last `tail` values. These are statistics and the loss, which
have no use as signs; the server takes their median. Then comes one bit for each coordinate before them, a 1 that marks
the end, and zeros.
Shapes: n workers = k partitions, d = p + tail elements, replies of 4 tail + p // 8 + 1 bytes, m = 1.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
import numpy.typing as npt

from draco.declaration import OnlyWith, Option, OptionError
from draco.errors import DecodeError
from draco.lazy import Tensor, torch
from draco.schemes.assignments import bernoulli, deterministic
from draco.schemes.declaration import SchemeDeclaration, Sizes, require_workers
from draco.schemes.scheme import Decoded, Decoder, Encoder, Inspection, Mask, Scheme

CODES = ("deterministic", "bernoulli")
BLOCK = 1 << 14  # bytes of a reply that are counted at once: their votes stay in the second-level cache
BLOCK_GPU = 1 << 22  # on a GPU; they take 32 times as many bytes there

Bytes = npt.NDArray[np.uint8]


def _sizes(
    workers: int, adversaries: int, code: str = CODES[0], redundancy: int | None = None, tail: int = 1, **_: object
) -> Sizes:
    require_workers("election", workers, adversaries)
    if code not in CODES:
        raise OptionError("election", "code", f"must be one of {', '.join(CODES)}, got {code!r}")
    if redundancy is not None and code != "bernoulli":
        raise OptionError("election", "redundancy", f"applies only with code: bernoulli, got {redundancy}")
    if redundancy is not None and not 1 <= redundancy <= workers:
        raise OptionError("election", "redundancy", f"must be from 1 to {workers} workers, got {redundancy}")
    if tail < 0:
        raise OptionError("election", "tail", f"must be 0 or more, got {tail}")
    return Sizes(partitions=workers, gradients=1)


def election(
    *,
    workers: int,
    adversaries: int,
    code: str = "deterministic",
    redundancy: int | None = None,
    tail: int = 1,
    seed: int = 0,
) -> Scheme:
    """Return the election scheme for n >= 2s + 1 workers.

    `redundancy` is how many partitions a worker computes on average in a Bernoulli `code`, 2s + 1 if None. The last
    `tail` elements of a vector travel as numbers. `seed` is that of a Bernoulli design.

    Raises:
        ValueError: an option is out of its range.
    """
    _sizes(workers, adversaries, code, redundancy, tail)
    r = 2 * adversaries + 1 if redundancy is None else redundancy
    design = deterministic(workers, adversaries) if code == "deterministic" else bernoulli(workers, r, seed)
    load = int(design.sum(1).max())
    tolerance = "whatever they send" if code == "deterministic" else "with high probability"
    return Scheme(
        name="election",
        workers=workers,
        adversaries=adversaries,
        redundancy=load,
        assignment=design,
        weights=None,
        encoder=_encoder(tail),
        decoder=_decoder(workers, tail),
        inspect=None,
        dtype=torch.uint8,
        amplification=None,
        summary=f"election ({code}): {workers} workers, redundancy {design.sum() / workers:.3g} on average and {load} "
        f"at most, signs of up to {adversaries} adversaries outvoted {tolerance}; the gradient is a majority of signs",
        elements=lambda d: 4 * tail + (d - tail) // 8 + 1,
        exact=False,
    )


def _encoder(tail: int) -> Encoder:
    def encode(row: int, gradients: Tensor) -> Tensor:
        p = gradients.shape[1] - tail
        if p < 0:
            raise ValueError(f"election: gradients have {gradients.shape[1]} elements, fewer than tail = {tail}")
        votes = torch.zeros(p, device=gradients.device)  # positive signs less negative ones
        for gradient in gradients:
            votes += gradient[:p].sign()
        coin = torch.arange(row, row + p, device=votes.device) % 2 == 0
        bits = torch.where(votes == 0, coin, votes > 0)
        rest = gradients[:, p:].float().mean(0)
        if not bool(torch.isfinite(rest).all()):  # perhaps the sum alone is beyond float32, and the mean is not
            rest = gradients[:, p:].double().mean(0).float()
        return torch.cat([rest.view(torch.uint8), _packed(bits)])

    return encode


def _decoder(n: int, tail: int) -> Decoder:
    def decode(replies: Tensor, here: Mask, seed: int, inspection: Inspection | None) -> Decoded:
        if replies.shape[1] <= 4 * tail:
            raise ValueError(f"election: replies have {replies.shape[1]} bytes, must have more than {4 * tail}")
        rows = np.flatnonzero(here)
        ends = torch.cat([replies[:, : 4 * tail], replies[:, -1:]], 1).cpu().numpy()[rows]
        # The numbers of each row (rows, tail), and which rows are well formed.
        rest = np.ascontiguousarray(ends[:, :-1]).view(np.float32).reshape(len(rows), tail)
        length, good = _agreed(ends[:, -1], np.asarray(np.isfinite(rest).all(axis=1)))
        count = _majority if replies.is_cpu else _majority_there
        signs = count(replies[:, 4 * tail :], rows[good])[: 8 * (replies.shape[1] - 4 * tail - 1) + length]
        middle = np.median(rest[good].astype(np.float64), axis=0).astype(np.float32)  # the middle two may add up to Inf
        result = torch.cat([signs, torch.from_numpy(middle).to(replies.device)])
        return Decoded(result[None], tuple(int(row) for row in rows[~good]))

    return decode


def _agreed(last: Bytes, finite: npt.NDArray[np.bool_]) -> tuple[int, npt.NDArray[np.bool_]]:
    """Return how many signs the last byte holds and which rows are as an honest one may be.

    Raises:
        DecodeError: most of what arrived is not.
    """
    ends = np.where(finite, last & -last.astype(np.int16), 0)  # the lowest bit that is set
    [(end, count)] = Counter(ends[ends > 0].tolist()).most_common(1) or [(1, 0)]
    if 2 * count <= len(last):
        raise DecodeError(
            f"election: of {len(last)} replies that arrived only {count} agree on where their signs end and hold "
            "finite numbers, must be more than half"
        )
    return 8 - int(end).bit_length(), ends == end


def _packed(bits: Tensor) -> Tensor:
    """Return bits (p,), then a 1, then zeros, as p // 8 + 1 bytes, the first bit the highest of the first byte."""
    if bits.is_cpu:
        return torch.from_numpy(np.packbits(np.append(bits.numpy(), True)))
    p = len(bits)
    padded = torch.zeros(8 * (p // 8 + 1), dtype=torch.uint8, device=bits.device)
    padded[:p] = bits
    padded[p] = 1
    return (padded.view(-1, 8) << _shifts(bits.device)).sum(1, dtype=torch.uint8)


def _shifts(device: torch.device) -> Tensor:
    """Return by how much the bits of a byte are shifted, (8,)."""
    return torch.arange(7, -1, -1, device=device).to(torch.uint8)


def _majority_there(received: Tensor, rows: npt.NDArray[np.intp]) -> Tensor:
    """Return what `_majority` does, of replies on a GPU."""
    width = received.shape[1]
    out = torch.empty(8 * width, device=received.device)
    shifts = _shifts(received.device)
    for start in range(0, width, BLOCK_GPU):
        block = received[:, start : start + BLOCK_GPU]
        votes = torch.zeros(block.shape[1], 8, dtype=torch.int16, device=received.device)
        for row in rows.tolist():
            votes += (block[row][:, None] >> shifts) & 1
        out[8 * start : 8 * start + votes.numel()] = (2 * votes - len(rows)).sign().view(-1)
    return out


def _majority(replies: Tensor, rows: npt.NDArray[np.intp]) -> Tensor:
    """Return the sign of the majority of the rows' bits, (8 times the bytes,): 1, -1, or 0 for a tie."""
    received = replies.numpy()
    out = np.empty(8 * received.shape[1], np.float32)
    for start in range(0, received.shape[1], BLOCK):
        block = received[:, start : start + BLOCK]
        votes = np.zeros(8 * block.shape[1], np.int16)
        for row in rows:
            votes += np.unpackbits(block[row])
        out[8 * start : 8 * start + len(votes)] = np.sign(2 * votes - np.int16(len(rows)))
    return torch.from_numpy(out)


ELECTION = SchemeDeclaration(
    name="election",
    function=election,
    text="a majority of signs, one bit a coordinate",
    options={
        "code": Option(
            Literal["deterministic", "bernoulli"] | None,
            None,
            "Who computes what. deterministic (null): built, and proved; bernoulli: drawn.",
        ),
        "redundancy": Option(
            int | None,
            None,
            "Partitions of a worker on average; null: 2s+1.",
            ge=1,
            le=4096,
            only_with=OnlyWith("code", ("bernoulli",)),
        ),
    },
    sizes=_sizes,
    dtype="uint8",
    supplied=("seed", "tail"),
)
