"""What ranks go through: each function runs on every rank, and returns what that rank has seen."""

import os
import random
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from trained import Training, flipped

import draco.torch
from draco.errors import JobError
from draco.torch.measuring import Measure
from draco.torch.reducer import Reducer

WRONG = 3  # the rank that is faulty


class Once:
    """A fault that happens at one step, once, on one rank; with `lasting` from then on, in recomputations, too."""

    def __init__(
        self, step: int, lasting: bool = False, rank: int = WRONG, nan: bool = False, bit: int | None = None
    ) -> None:
        self.step, self.lasting, self.rank, self.nan = step, lasting, rank, nan
        self.bit = random.randrange(8, 30) if bit is None else bit
        self.armed = False

    def due(self) -> bool:
        """Return whether it is to happen now."""
        armed, self.armed = self.armed, self.armed and self.lasting
        return armed

    def begin(self, step: int) -> bool:
        """Arm it if its step has come; return whether this was the first step's word."""
        if step == self.step and dist.get_rank() == self.rank:
            self.armed = True
        return step == 1


class Gradient(Once):
    """A bit of one parameter's gradient."""

    def __call__(self, training: Training, step: int) -> None:
        if self.begin(step):
            next(training.model.parameters()).register_hook(self.hook)

    def hook(self, gradient: Tensor) -> Tensor | None:
        if not self.due():
            return None
        return gradient * float("nan") if self.nan else flipped(gradient, bit=self.bit)


class Activation(Once):
    """A bit in the middle of a forward pass."""

    def __call__(self, training: Training, step: int) -> None:
        if self.begin(step):
            module = training.model.inner if training.loss_inside else training.model
            module.last.register_forward_pre_hook(self.hook)

    def hook(self, module: Any, args: tuple[Tensor]) -> tuple[Tensor] | None:
        if not self.due():
            return None
        (x,) = args
        return (x + (flipped(x.detach() + 1.0, bit=22) - (x.detach() + 1.0)),)


class Weight(Once):
    """A bit of one weight, that stays."""

    def __call__(self, training: Training, step: int) -> None:
        self.begin(step)
        if self.due():
            weight = next(training.model.parameters()).data
            weight.copy_(flipped(weight, bit=26))


class Momentum(Once):
    """A bit in the optimizer's state."""

    def __call__(self, training: Training, step: int) -> None:
        self.begin(step)
        if self.due():
            state = next(iter(training.opt.state.values()))
            name = "exp_avg" if "exp_avg" in state else "momentum_buffer"
            state[name].copy_(flipped(state[name], bit=26))


class Lie(Once):
    """A digest that is not that of the data."""

    def __call__(self, training: Training, step: int) -> None:
        if self.begin(step):
            honest = Measure.joined
            Measure.joined = lambda own, found: [n + shift for shift in [self.due()] for n in honest(own, found)]


def plain(**options: Any) -> dict[str, Any]:
    """Return the bits that DDP on the first half of the ranks gives rank 0, known to all ranks."""
    found = [Training(plain=True, **options).run()]
    dist.broadcast_object_list(found, 0)
    return found[0]


def both(fault: Any = None, **options: Any) -> dict[str, Any]:
    """Return what a guarded training gives, and whether its bits are those of plain DDP."""
    undisturbed = plain(**{name: value for name, value in options.items() if name != "guard_options"})
    seen = Training(fault=fault, **options).run()
    own_buffers = seen.pop("buffers")  # of a rank's last batch: those of rank 0 are the model's
    alike = dist.get_rank() > 0 or own_buffers == undisturbed["buffers"]
    return {**seen, "equal": alike and seen["bits"] == undisturbed["bits"]}


def nothing() -> dict[str, Any]:
    return both()


def nothing_in_all_ways() -> dict[str, Any]:
    """Each way to train, without a fault: equal to plain DDP or not, and what was found."""
    ways: dict[str, dict[str, Any]] = {
        "loss inside": {"loss_inside": True},
        "accumulated": {"accumulate": 3},
        "summed each time": {"accumulate": 2, "sync_always": True},
        "zeroed": {"zeroed": True, "accumulate": 2},
        "clipped": {"clip": True, "optimizer": torch.optim.SGD, "options": {"lr": 0.1, "momentum": 0.9}},
        "scaled": {"scale": True, "autocast": True, "clip": True},
        "bucket views": {"bucket_view": True},
        "sampled": {"guard_options": {"every": 3}},
    }
    return {name: both(**options) for name, options in ways.items()}


def compiled() -> dict[str, Any]:
    return both(Gradient(3), compiled=True, steps=4)


def gradient() -> dict[str, Any]:
    return both(Gradient(random.randrange(1, 7)), loss_inside=True)


def gradient_of_accumulated() -> dict[str, Any]:
    return both(Gradient(4), accumulate=3, scale=True, autocast=True, clip=True)


def gradient_where_no_gradient_is_zeroed() -> dict[str, Any]:
    return both(Gradient(3), accumulate=2, sync_always=True, zeroed=True, bucket_view=True)


def gradient_of_checkpointed() -> dict[str, Any]:
    return both(Gradient(2), frugal=True, steps=3)


def hidden() -> dict[str, Any]:
    """A gradient that goes wrong after its digest was taken."""

    class Late(Once):
        def __call__(self, training: Training, step: int) -> None:
            if self.begin(step):
                honest = Reducer._sum
                Reducer._sum = lambda own, buffer: honest(own, buffer.add_(float(self.due())))

    return both(Late(3))


def gradient_with_loss_outside() -> dict[str, Any]:
    return both(Gradient(5))


def activation() -> dict[str, Any]:
    return both(Activation(3))


def lasting_gradient() -> dict[str, Any]:
    return both(Gradient(4, lasting=True), accumulate=2)


def lasting_activation() -> dict[str, Any]:
    return both(Activation(4, lasting=True))


def weight() -> dict[str, Any]:
    return both(Weight(3))


def column() -> dict[str, Any]:
    return both(
        Momentum(3),
        optimizer=torch.optim.SGD,
        options={"lr": 0.1, "momentum": 0.9},
        guard_options={"state_every": 2, "every": 100},
    )


def state() -> dict[str, Any]:
    return both(Momentum(3), guard_options={"state_every": 1})


def not_a_number() -> dict[str, Any]:
    return both(Gradient(3, nan=True))


def lie() -> dict[str, Any]:
    return both(Lie(3))


def sampled() -> dict[str, Any]:
    return both(Gradient(2, lasting=True), guard_options={"every": 4})


def tolerant() -> dict[str, Any]:
    return both(Gradient(3, bit=27), guard_options={"tolerance": 1e-3})


def own_not_a_number() -> dict[str, Any]:
    class Everywhere(Gradient):
        def begin(self, step: int) -> bool:
            self.rank = dist.get_rank()
            return super().begin(step)

    return both(Everywhere(3, nan=True, lasting=True), steps=3)


def random_state() -> dict[str, Any]:
    def unlike(training: Training, step: int) -> None:
        if step == 2:
            torch.manual_seed(dist.get_rank())

    return both(unlike)


def inputs() -> dict[str, Any]:
    """The random state of one rank of three is another from step 3 on."""

    def unlike(training: Training, step: int) -> None:
        if step == 3 and dist.get_rank() == 2:
            torch.manual_seed(99)

    return both(unlike, redundancy=3, steps=3)


def by_vote() -> dict[str, Any]:
    return both(Gradient(2, lasting=True, rank=1), redundancy=3, steps=3)


def hangs() -> dict[str, Any]:
    """Rank 3 does not come back from its third step's data."""

    def stop(training: Training, step: int) -> None:
        if step == 3 and dist.get_rank() == WRONG:
            time.sleep(14)
            os._exit(0)

    return Training(fault=stop, guard_options={"timeout_s": 5}).run()


def dies() -> dict[str, Any]:
    """Rank 3 dies in an unchecked step."""

    def stop(training: Training, step: int) -> None:
        if step == 3 and dist.get_rank() == WRONG:
            os._exit(0)

    return Training(fault=stop, guard_options={"timeout_s": 5, "every": 10}).run()


def refused() -> dict[str, Any]:
    """What a guard says to models and numbers that it cannot take."""

    def message(model: Any, **options: Any) -> str:
        try:
            draco.torch.Guard(model, **options)
        except JobError as error:
            return str(error)
        return "taken"

    ddp = DistributedDataParallel(nn.Linear(2, 2))
    return {
        "plain": message(nn.Linear(2, 2)),
        "compiled": message(torch.compile(ddp, backend="aot_eager")),
        "redundancy": message(ddp, redundancy=3),
        "numbers": message(ddp, every=0, state_every=-1, timeout_s=0, tolerance=2),
    }


def states_of_ranks() -> dict[str, Any]:
    """Learning rates that differ are nobody's hardware."""

    def unlike(training: Training, step: int) -> None:
        if dist.get_rank() == WRONG:
            training.opt.param_groups[0]["lr"] = 0.5

    return Training(fault=unlike, guard_options={"state_every": 1}).run()


def input_written() -> dict[str, Any]:
    """A batch whose memory the next micro-batch uses again."""
    ddp = DistributedDataParallel(nn.Linear(4, 1))
    draco.torch.Guard(ddp)
    x = torch.ones(2, 4)
    with ddp.no_sync():
        ddp(x).sum().backward()
    x.zero_()
    ddp(x).sum().backward()
    return {}


def no_outputs() -> dict[str, Any]:
    """A model whose outputs hide in an object of its own."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(loss=self.inner(x).sum())

    ddp = DistributedDataParallel(Hidden())
    draco.torch.Guard(ddp)
    ddp(torch.ones(2, 4))
    return {}


def unrepeatable() -> dict[str, Any]:
    """A model that draws from numpy: never the same bits twice."""

    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 1)
            self.drawn = np.random.default_rng(dist.get_rank())

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x * float(self.drawn.normal()))

    ddp = DistributedDataParallel(Drawing())
    draco.torch.Guard(ddp)
    ddp(torch.ones(2, 4)).sum().backward()
    return {}


def hidden_loss() -> dict[str, Any]:
    """A part of the loss goes by an attribute, and not through what the model returns."""

    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.penalty = self.inner.weight.square().sum()
            return self.inner(x)

    model = Keeping()
    ddp = DistributedDataParallel(model)
    draco.torch.Guard(ddp)
    (ddp(torch.ones(2, 4)).sum() + model.penalty).backward()
    return {}


def first_step() -> dict[str, Any]:
    return both(Gradient(1), steps=2)
