"""The times of every aggregator and pre-aggregator beside the same rule of the peers and the plain mean, in one run."""

import os
import time
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import memory
from benchmarks.contests import CONTESTS, Contest, Run, gradients_of, hopeless, ours, tolerated
from benchmarks.peers import VERSIONS
from draco.errors import MissingError

SIZES = ((10, 2, 1_000_000), (20, 4, 1_000_000), (45, 10, 1_000_000), (10, 2, 11_000_000))  # n, f, d
QUICK = ((7, 1, 3000),)
ENOUGH = 1.0  # seconds in calls of one rule, after which it is called no more
CALLS = 15  # and no more often than this


class Figure(NamedTuple):
    """One line of the table."""

    what: str
    size: str
    device: str
    seconds: float | None  # ours; None: see `reasons`
    of_mean: float | None  # ours against the plain mean of the same matrix
    peers: dict[str, float]  # seconds
    reasons: dict[str, str]  # why somebody's time is not there
    ratio: float | None  # the fastest peer's time to ours; None: there is none
    target: float
    memory: float | None  # ours beyond gradients and result, as a part of the gradients

    @property
    def verdict(self) -> str:
        """Say whether the target is met."""
        if self.ratio is None:
            return ""
        return "met" if round(self.ratio, 1) >= self.target else "MISSED"  # as it is shown


def figures(quick: bool) -> Iterator[Figure]:
    """Yield a line for every contest at every size on the CPU, and then on the GPU where there is one."""
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for n, f, d in QUICK if quick else SIZES:
            taken = memory.measured(n, d, f) if device == "cpu" else {}
            gradients = gradients_of(n, d, device)
            for contest in CONTESTS:
                yield _figure(contest, gradients, tolerated(contest.rule, n, f), taken, 1 if quick else CALLS)


def _figure(contest: Contest, gradients: Tensor, f: int, taken: dict[str, int], repeats: int) -> Figure:
    n, d = gradients.shape
    own = ours(contest, n, f)
    runs: dict[str, Run] = {"mean": lambda gradients: gradients.mean(0)}
    reasons = {}
    if isinstance(own, str):
        reasons["ours"] = own
    else:
        runs["ours"] = own
    for peer, make in contest.peers.items():
        try:
            reason = hopeless(peer, contest.rule, n, f, d, _available())
            if reason is None:
                runs[peer] = make(n, f)
        except MissingError as error:
            reason = str(error)
        if reason:
            reasons[peer] = reason
    seconds = timed(runs, gradients, repeats, bool(contest.options.get("overwrite")), reasons)
    peers = {name: seconds[name] for name in seconds if name in VERSIONS}
    time_of = seconds.get("ours")
    used = taken.get(contest.title)
    if "ours" in seconds and gradients.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = runs["ours"](gradients)
        assert isinstance(result, Tensor)
        used = torch.cuda.max_memory_allocated() - before - result.numel() * result.element_size()
    return Figure(
        contest.title,
        f"n={n} f={f} d={d:,}",
        gradients.device.type,
        time_of,
        time_of / seconds["mean"] if time_of else None,
        peers,
        reasons,
        min(peers.values()) / time_of if peers and time_of else None,
        contest.target,
        None if used is None else used / (4 * n * d),
    )


def timed(
    runs: dict[str, Run], gradients: Tensor, repeats: int, overwritten: bool, reasons: dict[str, str]
) -> dict[str, float]:
    """Return the median seconds of each, all called in turn after a first call; or that call's, where it was long.

    Who fails is left out and its error is added to `reasons`: a peer may not know the device, or numpy 2.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name in [name for name in runs if name not in reasons]:
            if repeat and sum(seconds[name]) > ENOUGH:
                continue
            given = gradients.clone() if overwritten else gradients
            try:
                seconds[name].append(_seconds(runs[name], given))
            except Exception as error:
                if name not in VERSIONS:
                    raise
                reasons[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return {name: median(taken[1:] or taken) for name, taken in seconds.items() if name not in reasons}


def _seconds(run: Run, gradients: Tensor) -> float:
    if gradients.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    run(gradients)
    if gradients.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _available() -> float:
    """Return the bytes of memory that a peer's call may take: half of the machine's."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


def tables(lines: list[Figure]) -> Iterator[Table]:
    """Yield a table for every size on every device."""
    for size, device in dict.fromkeys((line.size, line.device) for line in lines):
        yield _table([line for line in lines if (line.size, line.device) == (size, device)])


def _table(lines: list[Figure]) -> Table:
    notes = dict.fromkeys(f"* {line.what}, {who}: {why}" for line in lines for who, why in line.reasons.items())
    shown = Table(
        title=f"Aggregators, {lines[0].size}, {lines[0].device}: ms, medians of calls that take turns on one thread",
        caption="\n".join([*notes, "memory: beyond the gradients and the result, as a part of the gradients"]),
        caption_justify="left",
    )
    headings = ("rule", "ours", "x mean", *VERSIONS, "ratio", "target", "", "memory")
    for heading in headings:
        shown.add_column(heading, justify="left" if heading in ("rule", "") else "right", no_wrap=True)
    for line in lines:
        times = {**line.peers, **({} if line.seconds is None else {"ours": line.seconds})}
        ours, *peers = (_ms(times.get(who)) if who not in line.reasons else "*" for who in ("ours", *VERSIONS))
        ratio, of_mean = ("" if value is None else f"{value:.1f}" for value in (line.ratio, line.of_mean))
        target = "" if line.ratio is None else f"{line.target:g}"
        part = "" if line.memory is None else f"{line.memory:.1%}"
        shown.add_row(line.what, ours, of_mean, *peers, ratio, target, line.verdict, part)
    return shown


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.1f}"
