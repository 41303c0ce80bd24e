"""Whether replays pay: what they cost the server and the network, against copies of the computation.

One server replays every pair of a step, and receives a transcript for each. Or it replays a sample of them, or hands
transcripts on to drawn workers, who replay at the same time. Other protocols have workers compute each pair several
times instead. So for each form there is a number of copies from which on it is the quicker way. It depends on the
model, on the batch, on the network and on the number of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from math import ceil
from statistics import median
from typing import NamedTuple, TypeVar

import torch

from draco.replay.checking import replay
from draco.replay.recording import record

T = TypeVar("T")
BYTES_A_SECOND = 1.25e9  # of the server's network, where nothing is known: 10 Gbit/s
SAMPLE = 0.1
_NUMBER = 4  # bytes


class Costs(NamedTuple):
    """What one pair costs, measured once."""

    gradient_s: float  # one worker, one pair
    replay_s: float
    numbers: int  # of its vector
    transcript: int  # numbers of its transcript
    digest_s: float = 0.0  # of the transcript's SHA-256


class Advice(NamedTuple):
    """What replays come to for a job."""

    share: float  # a replay's part of a gradient
    transcript_bytes: int  # that a worker sends for a pair
    server_s: float  # a step: receiving all transcripts and replaying them
    copies: float  # replays are quicker than protocols that compute each pair more often than this
    sampled: float  # the same of a sample, which is not exact
    drawn: float  # the same of drawn verifiers
    pays: bool  # adversaries + 1 copies, which is what certainty costs otherwise, are more than `copies`
    sentence: str


def measure(
    compute: Callable[[], T], *, clock: Callable[[], float], generator: torch.Generator, numbers: int, repeats: int = 3
) -> Costs:
    """Return what a computation costs: it runs 2 `repeats` + 2 times.

    Args:
        compute: of one pair's vector; may be run any number of times.
        clock: gives seconds, such as time.perf_counter.
        generator: of the check's vectors.
        numbers: of the pair's vector.
        repeats: of each timing, of which the median counts.

    Raises:
        CheatError: the computation gives other products each time, as one that draws random numbers does.
    """
    compute()
    _, transcript = record(compute)
    gradient = _median_s([compute] * repeats, clock)
    copies = [transcript.clone() for _ in range(repeats)]  # a replay may overwrite its transcript
    again = _median_s([partial(replay, compute, copy, generator=generator) for copy in copies], clock)
    digest = _median_s([partial(sha256, transcript.numpy().data)] * repeats, clock)
    return Costs(gradient, again, numbers, len(transcript), digest)


def advise(
    costs: Costs, *, pairs: int, adversaries: int, bytes_a_second: float = BYTES_A_SECOND, sample: float | None = None,
    verifiers: int | None = None,
) -> Advice:  # fmt: skip
    """Say whether replays pay for a job, and in which form, on a server that is as fast as one worker.

    Args:
        costs: of one pair.
        pairs: partitions of a step, each computed by a worker of its own.
        adversaries: Byzantine workers to tolerate; there are so many more workers than pairs.
        bytes_a_second: that the server receives, and that it sends.
        sample: the part of the pairs that the server replays in that form; None: SAMPLE.
        verifiers: of each pair in that form; None: as many as adversaries, which is exact.

    Raises:
        ValueError: a number is out of its range.
    """
    if not (costs.gradient_s > 0 and costs.replay_s >= 0 and pairs >= 1 and adversaries >= 0 and bytes_a_second > 0):
        raise ValueError(
            f"{costs}, {pairs} pairs, {adversaries} adversaries, {bytes_a_second} bytes a second; "
            "give times and bytes above 0, and at least 1 pair"
        )
    share = costs.replay_s / costs.gradient_s
    receive_s = pairs * costs.transcript * _NUMBER / bytes_a_second
    server_s = receive_s + pairs * costs.replay_s
    receive_vectors_s = pairs * costs.numbers * _NUMBER / bytes_a_second
    # gradient + server_s = copies * gradient + receive_vectors_s
    copies = max(1.0, 1 + (server_s - receive_vectors_s) / costs.gradient_s)
    part, a = SAMPLE if sample is None else sample, adversaries if verifiers is None else verifiers
    sampled = 1 + (part * server_s + costs.digest_s) / costs.gradient_s
    replays = ceil(a * pairs / (pairs + adversaries))  # one after the other, of the worker that has most
    drawn = 1 + ((1 + a) * receive_s + replays * costs.replay_s) / costs.gradient_s  # transcripts up, and a times down
    pays = copies < adversaries + 1
    size = costs.transcript * _NUMBER
    if drawn < min(copies, adversaries + 1):
        verdict = f"So verifiers: {a} pays: {adversaries + 1} copies are needed without it"
    elif pays:
        verdict = f"So checked pays: {adversaries + 1} copies are needed without it"
    else:
        count = "1 copy" if adversaries == 0 else f"{adversaries + 1} copies"
        verdict = f"So {count}, as reactive has while nobody is expelled, take no longer"
    sentence = (
        f"a replay takes {share:.2f} of a gradient; {pairs} transcripts of {_size(size)} keep the server busy for "
        f"{_seconds(server_s)} a step, of which {_seconds(receive_s)} at {bytes_a_second * 8e-9:.3g} Gbit/s, while a "
        f"worker computes for {_seconds(costs.gradient_s)}: as long as {copies:.1f} copies of each partition take; "
        f"sample: {part:g} would take as long as {sampled:.1f}, verifiers: {a} as {drawn:.1f}. {verdict}"
    )
    return Advice(share, size, server_s, copies, sampled, drawn, pays, sentence)


def _median_s(calls: Sequence[Callable[[], object]], clock: Callable[[], float]) -> float:
    times = []
    for call in calls:
        start = clock()
        call()
        times.append(clock() - start)
    return median(times)


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
