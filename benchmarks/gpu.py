"""Decoders and rules on a GPU, beside what it copies in the same time: `make bench ARGS="--only gpu"`.

Each is bound by its reads. So its figure is the least that it must read and write, over its time, as a part of what a
copy reads and writes in that time. The aim is 60 %. It takes at most four minutes.
Shapes: n = 15 workers, f = s = 3 Byzantine ones, d numbers of a reply, float32.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS
from draco.schemes import build
from draco.training import device as devices

N, F = 15, 3
RESNET_50, GPT_2 = 25_557_032, 124_439_808
AIM = 0.6
ENOUGH = 0.3  # seconds in calls of one variant, after which it is called no more
CALLS = 9
BUDGET = 200.0  # seconds after which variants are left out: compilation and data come on top
ROOM = 44  # vectors of d floats that the largest variant takes: gradients, replies, scratch

Call = Callable[[], object]


class Figure(NamedTuple):
    """One line of the table."""

    what: str
    size: str
    seconds: float | None  # None: see `note`
    least: int  # bytes that it must read and write
    copied: float  # bytes a second that a copy reads and writes
    machine: str
    note: str = ""

    @property
    def part(self) -> float | None:
        """Return the part of the copy's bandwidth that it reaches."""
        return None if self.seconds is None else self.least / self.seconds / self.copied

    @property
    def verdict(self) -> str:
        """Say whether the aim is met."""
        if self.part is None or self.note:
            return self.note
        return "met" if self.part >= AIM else "MISSED"


def figures(quick: bool) -> Iterator[Figure]:
    """Yield a line for each variant at each size; none, and a word why, where there is no GPU."""
    if not devices.gpus():
        print("gpu: torch sees no GPU here, so this section is left out", file=sys.stderr)
        return
    device = torch.device(devices.GPU, 0)
    until = time.monotonic() + BUDGET
    machine = described(device)
    for d in (3000,) if quick else _sizes(device):
        size = f"n={N} d={d:,}"
        copied, lines = _copies(device, d, machine, size)
        yield from lines
        for what, least, make in [*_decoders(device, d), *_rules(device, d)]:
            if time.monotonic() > until:
                yield Figure(what, size, None, least, copied, machine, "left out: four minutes are over")
                continue
            try:
                yield Figure(what, size, timed(make(), device), least, copied, machine)
            except Exception as error:  # the others are still worth their lines
                why = (str(error).splitlines() or [type(error).__name__])[0]
                yield Figure(what, size, None, least, copied, machine, f"FAILED: {why}")


def described(device: torch.device) -> str:
    """Return the GPU's name and memory, its driver, and torch's CUDA."""
    module: Any = torch.get_device_module(device)
    gib = module.get_device_properties(device).total_memory / 2**30
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index}"]
        driver = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        driver = "unknown"
    name = module.get_device_name(device)
    return f"{name}, {gib:.0f} GiB, driver {driver}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def _sizes(device: torch.device) -> list[int]:
    """Return the numbers of columns that fit the GPU: ResNet-50's, and GPT-2's or as many as there is room for."""
    free = torch.get_device_module(device).mem_get_info(device)[0]
    most = int(free / (4 * ROOM * 1.1))
    return [min(RESNET_50, most), *([min(GPT_2, most)] if most > 2 * RESNET_50 else [])]


def timed(call: Call, device: torch.device) -> float:
    """Return the median seconds of a call, by the GPU's clock, after two calls that compile and warm up."""
    module: Any = torch.get_device_module(device)
    taken: list[float] = []
    for repeat in range(CALLS + 2):
        begin, end = module.Event(enable_timing=True), module.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        if repeat >= 2:
            taken.append(begin.elapsed_time(end) / 1e3)
        if len(taken) >= 3 and sum(taken) > ENOUGH:
            break
    return median(taken)


def _copies(device: torch.device, d: int, machine: str, size: str) -> tuple[float, list[Figure]]:
    """Return what a copy on the GPU reads and writes a second, and the lines of copies there and to the host."""
    source, target = torch.ones(N, d, device=device), torch.empty(N, d, device=device)
    seconds = timed(lambda: target.copy_(source), device)
    copied = 2 * source.nbytes / seconds
    lines = [Figure("copy of n replies on the GPU", size, seconds, 2 * source.nbytes, copied, machine, "itself")]
    host = torch.ones(d, pin_memory=device.type == "cuda")
    for what, call in (
        ("one reply from page-locked memory", lambda: source[0].copy_(host, non_blocking=True)),
        ("one result to page-locked memory", lambda: host.copy_(source[0], non_blocking=True)),
    ):
        lines.append(Figure(what, size, timed(call, device), host.nbytes, copied, machine, "to compare"))
    return copied, lines


Variant = tuple[str, int, Callable[[], Call]]  # what it is, the least bytes, and what makes its data and returns a call


def _replies(name: str, device: torch.device, d: int, wrong: int, **options: Any) -> tuple[Any, Tensor]:
    """Return a scheme, and replies (n, e) of which the last ones of every third are wrong."""
    scheme = build(name, workers=N, **{"adversaries": F, **options})
    gradients = torch.randn(scheme.assignment.shape[1], d, device=device)
    replies = torch.empty(N, scheme.elements(d), dtype=scheme.dtype, device=device)
    for row in range(N):
        replies[row] = scheme.encode(row, gradients[list(scheme.partitions(row))])
    for row in range(wrong):
        replies[4 * row + 1] *= -100
    return scheme, replies


def _decoders(device: torch.device, d: int) -> Iterator[Variant]:
    def of(name: str, wrong: int, arrived: bool = False, **options: Any) -> Callable[[], Call]:
        def make() -> Call:
            scheme, replies = _replies(name, device, d, wrong, **options)

            def call() -> object:
                inspection = scheme.inspect(replies, 1) if arrived else None
                if inspection is not None:
                    for row in range(N):
                        inspection.add(row)
                return scheme.decode(replies, seed=1, inspection=inspection)

            return call

        return make

    once = 4 * d * N
    yield "repetition: vote on bits", once, of("repetition", 0)
    yield f"repetition: vote on bits, {F} wrong", once, of("repetition", F)
    yield "repetition: vote within a tolerance", once, of("repetition", 0, vote="tolerance")
    yield "cyclic: all at once, none wrong", once + 4 * d, of("cyclic", 0)
    yield f"cyclic: all at once, {F} wrong", once + 4 * d, of("cyclic", F)
    yield f"cyclic: as they arrive, {F} wrong", 4 * d * (2 * N - F + 1), of("cyclic", F, arrived=True)
    yield f"solon: {F} wrong", 2 * d * (2 * N - F) + 4 * d, of("solon", F)
    if d <= RESNET_50:  # replies of 16 bytes a number
        yield "cyclic_dft, the paper's: 2 wrong", 16 * d * (2 * N - 2) + 4 * d, of("cyclic_dft", 2, adversaries=2)


def _rules(device: torch.device, d: int) -> Iterator[Variant]:
    """Yield each rule. By coordinate it reads the rows once; else once to compare them, and once what it averages."""
    kept: list[Tensor] = []

    def rows() -> Tensor:
        if not kept:
            kept.append(torch.randn(N, d, device=device))
        return kept[0]

    def of(call: Callable[[Tensor], object]) -> Callable[[], Call]:
        return lambda: lambda: call(rows())

    vector = 4 * d
    for name, rule in AGGREGATORS.items():
        f = F if rule.least(F) <= N else max(f for f in range(F) if rule.least(f) <= N)
        again = {"krum": 1, "multi_krum": N - f, "bulyan": N - 2 * f}.get(name, N)
        read = N if rule.by_coordinate else N + again
        yield f"{name}, f={f}", vector * (read + 1), of(lambda g, rule=rule, f=f: rule(g, f=f))  # type: ignore[misc]
    generator = torch.Generator().manual_seed(1)
    for name, step in PRE_AGGREGATORS.items():
        options = {"generator": generator} if step.draws else {}
        made = step.remaining(N, {})
        read = N if name == "bucketing" else 2 * N
        yield f"{name}, f={F}", vector * (read + made), of(lambda g, step=step, o=options: step(g, f=F, **o))  # type: ignore[misc]


def table(lines: list[Figure]) -> Table:
    """Return the table, the worst first."""
    shown = Table(title=f"{lines[0].machine}; the worst first; the aim is {AIM:.0%} of what a copy reads and writes")
    for heading in ("what", "size", "ms", "GB/s", "of a copy", ""):
        shown.add_column(heading, justify="right" if heading in ("ms", "GB/s", "of a copy") else "left")
    for line in sorted(lines, key=lambda line: (line.note == "", line.part or 0.0)):
        speed = "" if line.seconds is None else f"{line.least / line.seconds / 1e9:.0f}"
        ms = "" if line.seconds is None else f"{line.seconds * 1e3:.2f}"
        shown.add_row(line.what, line.size, ms, speed, "" if line.part is None else f"{line.part:.0%}", line.verdict)
    return shown
