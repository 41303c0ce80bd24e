"""Steps of several rounds beside those of codes, of the plain mean and of plain PyTorch: time, gradients and bytes.

Over MPI on this machine the job is the quickstart's, with nobody who lies or with one who always does and is expelled
before the steps that count. In simulation, with n = 15 and s = 2, gradients are counted: a simulation computes each
once, however many workers are said to have computed it, so its times tell nothing of them.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from benchmarks.plain import Case, torch_steps
from benchmarks.steps import WORKERS, Event, lasted, simulated_steps, steps_of
from benchmarks.timing import Row
from draco.data import prepare
from draco.schemes import SCHEMES

LIAR = f"attack: {{name: reverse_gradient, ranks: [{WORKERS}]}}"
LONG = 500  # steps, over which the gradients of those who always lie are counted


class Variant(NamedTuple):
    """One way to train."""

    scheme: str  # as a job has it
    extra: str = "attack: none"  # other keys
    step: float | None = None  # a step takes at most this, in plain means
    copies: float = 0.0  # gradients of each partition, where events do not say it
    received: float | None = None  # bytes received, at most, in n vectors


VARIANTS = {
    "plain mean": Variant("uncoded", copies=1.0),
    "repetition": Variant("{name: repetition, adversaries: 1}", copies=3.0),
    "repetition, digests": Variant("{name: repetition, adversaries: 1, uplink: digest}", copies=3.0, received=0.35),
    "cyclic": Variant("{name: cyclic, adversaries: 1}", copies=3.0),
    "reactive, nobody lies": Variant("{name: reactive, adversaries: 1}", step=2.2, received=0.95),
    "reactive, liars expelled": Variant("{name: reactive, adversaries: 1}", LIAR, step=1.15, received=0.95),
    "verified, nobody lies": Variant("{name: verified, adversaries: 1, verifiers: 1}", received=0.95),
    "verified, liars expelled": Variant("{name: verified, adversaries: 1, verifiers: 1}", LIAR, received=0.95),
    "checked, nobody lies": Variant("{name: checked, adversaries: 1}"),
}
QUICK = ("plain mean", "reactive, nobody lies", "reactive, liars expelled")
# Protocol -> its gradients a step at most, in those of plain SGD: with nobody who lies, and with s who always do.
COUNTED = {"reactive": (3.0, 1.05), "verified": (3.0, 1.05), "checked": (1.0, 1.05)}
OPTIONS = {"verified": ", verifiers: 2"}


def rows(quick: bool) -> Iterator[Row]:
    """Yield the steps of each variant over MPI, then the gradients that protocols need with more workers."""
    case = Case("lenet", "synthetic", 18, 2, 1) if quick else Case("lenet", "mnist_5k", 180, 20, 8)
    with tempfile.TemporaryDirectory() as folder:
        prepare(case.data, Path(folder))
        yield from _over_mpi(Path(folder), case, quick)
    for model, data, steps, few in (("lenet", "synthetic", LONG, 10), ("resnet18", "synthetic_rgb", 8, 2)):
        if not quick:
            with tempfile.TemporaryDirectory() as folder:
                prepare(data, Path(folder))
                yield from _counted(Path(folder), model, data, steps, few)


def known(variant: Variant) -> bool:
    """Say whether this version has the variant's scheme, with its options."""
    words = variant.scheme.strip("{}").replace("name: ", "").split(", ")
    options = {word.split(": ")[0] for word in words[1:]} - {"adversaries"}
    return words[0] in SCHEMES and options <= SCHEMES[words[0]].options.keys()


def _over_mpi(folder: Path, case: Case, quick: bool) -> Iterator[Row]:
    """Let the variants take turns, the plain mean first, and yield what is known of each after its last turn."""
    names = QUICK if quick else [name for name in VARIANTS if known(VARIANTS[name])]
    turns = 1 if quick else 2
    plain: list[float] = []
    steps: dict[str, list[Event]] = {name: [] for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(1, turns + 1):
        plain += torch_steps(case, str(folder))
        for name in names:
            variant = VARIANTS[name]
            job = f"model: {case.model}, data: {case.data}, batch_size: {case.batch_size}, scheme: {variant.scheme}, "
            job += f"{variant.extra}, optimizer: {{name: sgd, lr: 0.05, momentum: 0.9}}, "
            job += f"steps: {case.warm_up + case.steps + 1}"
            of = simulated_steps if quick else steps_of
            found = of(folder, "protocols", job, warm_up=case.warm_up)
            steps[name] += found
            times[name] += lasted(found)
            if turn == turns:
                yield from _known_of(name, case, plain, steps, times)


def _known_of(
    name: str, case: Case, plain: list[float], steps: dict[str, list[Event]], times: dict[str, list[float]]
) -> Iterator[Row]:
    """Yield a variant's median step, its gradients and its bytes; before those of the plain mean plain PyTorch's step.

    Args:
        name: of the variant.
        case: the job.
        plain: seconds of plain PyTorch's steps.
        steps: events by variant.
        times: seconds of steps by variant.
    """
    size, base = f"{case.model} n={WORKERS} B={case.batch_size}", median(times["plain mean"])
    vectors = median(event["bytes_received"] for event in steps["plain mean"])
    if name == "plain mean":
        yield Row("plain PyTorch step, all cores", size, median(plain), "plain mean's step", median(plain) / base, None)
    variant, step = VARIANTS[name], median(times[name])
    yield Row(f"step, {name}", size, step, "plain mean's step", step / base, variant.step)
    copies = mean(event.get("copies", variant.copies) for event in steps[name])
    yield Row(f"gradients, {name}", size, step, "plain SGD's", copies, None)
    received = mean(event["bytes_received"] for event in steps[name]) / vectors
    yield Row(f"bytes received, {name}", size, step, "n vectors", received, variant.received)


def _counted(folder: Path, model: str, data: str, steps: int, few: int) -> Iterator[Row]:
    """Yield the gradients of protocols with n = 15 and s = 2, in those of plain SGD.

    Where fewer steps than LONG are taken, the last one stands for those that would follow.
    """
    for name, targets in COUNTED.items():
        if name not in SCHEMES:
            continue
        scheme = f"{{name: {name}, adversaries: 2{OPTIONS.get(name, '')}}}"
        for liars, taken, target in (("nobody lies", few, targets[0]), ("2 always lie", steps, targets[1])):
            attack = "none" if liars == "nobody lies" else "{name: reverse_gradient, adversaries: 2}"
            job = f"model: {model}, data: {data}, batch_size: 26, scheme: {scheme}, attack: {attack}, steps: {taken}"
            found = simulated_steps(folder, "protocols", job, warm_up=0, workers=15)
            copies = [event["copies"] for event in found]
            if liars != "nobody lies":
                copies += [copies[-1]] * (LONG - len(copies))
            size = f"{model} n=15 s=2, {taken} steps"
            seconds = median(lasted(found))
            yield Row(f"gradients, {name}, {liars}", size, seconds, "plain SGD's", mean(copies), target)
