"""`Guard`: what a training script has of all this, in four lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, DistributedSampler

from draco.determinism import causes, fingerprint
from draco.errors import JobError
from draco.torch.court import Court
from draco.torch.evidence import LOGGER, Evidence, Register
from draco.torch.layout import Layout
from draco.torch.measuring import Measure
from draco.torch.peers import Peers
from draco.torch.recording import Recorder
from draco.torch.reducer import Reducer
from draco.torch.state import StateCheck

AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)


class Guard:
    """Finds, names and repairs what faulty hardware does to a step of data-parallel training.

    With `every=1` ranks form groups of `redundancy` replicas, which compute the same, and compare digests of their
    gradients in backward(). With `every=N` all ranks have samples of their own, as without a guard; in each N-th step
    `redundancy` - 1 other ranks recompute each rank's gradient, and compare.

    Where digests differ, ranks recompute, and what two different ranks agree on is used. To make a guard is a
    collective call: every rank makes it, after `DistributedDataParallel` and before the first backward().

    Args:
        model: a DistributedDataParallel over all ranks. Compile what is inside: `DDP(torch.compile(model))`.
        redundancy: how many ranks compute a gradient that is checked, 2 or more. With `every=1` it must divide the
            number of ranks, and costs so many times the samples.
        every: each so-many-th step is checked, the first one included. The others cost what they cost without a
            guard, and a fault that happens once in one of them is not seen.
        state_every: after so many steps weights and optimizer states of all ranks are compared; 0 for never.
        timeout_s: how long a rank that does not come is waited for.
        tolerance: relative; None asks for equal bits. With a number, all ranks sum together, and gradients may differ
            by that much.

    Raises:
        JobError: the model, or one of the numbers, cannot be.
        LostRankError: a rank did not come.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        redundancy: int = 2,
        *,
        every: int = 1,
        state_every: int = 100,
        timeout_s: float = 300.0,
        tolerance: float | None = None,
    ) -> None:
        ddp = _checked(model, every, state_every, timeout_s, tolerance)
        self.layout = Layout(dist.get_world_size(), redundancy, sampled=every > 1)
        self.rank = dist.get_rank()
        self._peers = Peers(self.layout, timeout_s, whole=tolerance is not None)
        self._register = Register(self.rank, self._peers.hosts)
        measure = Measure(tolerance)
        device = next(ddp.module.parameters()).device
        self._fingerprints = [json.loads(text) for text in self._peers.texts(json.dumps(fingerprint(device)))]
        if tolerance is None:
            self._compare_fingerprints()
        recorder = Recorder(ddp.module, device, measure)
        court = Court(self._peers, recorder, measure, ddp.broadcast_buffers, self._states)
        reducer = Reducer(self._peers, recorder, measure, court, self._register, every, self._causes)
        ddp.register_forward_pre_hook(reducer.begin)
        ddp.register_comm_hook(None, reducer.reduce)
        self._state_every = state_every
        self._optimizers: list[StateCheck] = []

    @property
    def suspects(self) -> Mapping[int, Sequence[Evidence]]:
        """The ranks that did something wrong, with what it was, each time."""
        return self._register.suspects

    @property
    def steps(self) -> int:
        """How many steps had their gradients summed."""
        return self._register.steps

    @property
    def checked(self) -> int:
        """How many steps were checked."""
        return self._register.checked

    @property
    def disputes(self) -> int:
        """How many steps had a group that differed."""
        return self._register.disputes

    @property
    def repaired(self) -> int:
        """How many gradients of a rank were repaired."""
        return self._register.repaired

    def sampler(
        self, dataset: Dataset[Any], shuffle: bool = True, seed: int = 0, drop_last: bool = False
    ) -> DistributedSampler[Any]:
        """Return torch's sampler for this rank. Call its `set_epoch`.

        With `every=1` all members of a group see the same samples, and otherwise each rank its own.
        """
        return DistributedSampler(
            dataset,
            num_replicas=self.layout.count,
            rank=self.layout.group_of(self.rank),
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )

    def seed(self, seed: int) -> None:
        """Seed torch's generators, so that ranks with the same samples draw the same (dropout), and others another."""
        torch.manual_seed(seed * self.layout.count + self.layout.group_of(self.rank))

    def optimizer(self, optimizer: AnyOptimizer) -> AnyOptimizer:
        """Return the optimizer itself, with a hook after step() that compares weights and states every so often."""
        self._optimizers.append(StateCheck(optimizer, self._peers, self._register, self._state_every))
        return optimizer

    def _states(self) -> list[torch.Tensor]:
        """Return the tensors of the states of the optimizers that the guard knows."""
        return [tensor for one in self._optimizers for tensor in one.states()]

    def _causes(self) -> list[str]:
        """Return what may make two computations differ, of the members of each group."""
        told = [causes({rank: self._fingerprints[rank] for rank in group}) for group in self.layout.groups]
        return list(dict.fromkeys(sentence for sentences in told for sentence in sentences))

    def _compare_fingerprints(self) -> None:
        """Refuse groups whose members have other bits in the simplest work; tell of settings that may matter."""
        for group in self.layout.groups:
            if len({self._fingerprints[rank]["results"] for rank in group}) > 1:
                told = "; ".join(causes({rank: self._fingerprints[rank] for rank in group}))
                raise JobError([f"members of a group do not compute the same bits: {told}"])
        if self.rank == 0:
            for sentence in self._causes():
                LOGGER.warning("equal bits are not certain: %s", sentence)


def _checked(
    model: torch.nn.Module, every: int, state_every: int, timeout_s: float, tolerance: float | None
) -> DistributedDataParallel:
    """Return the model if a guard can be made for it."""
    if not isinstance(model, DistributedDataParallel):
        inner = getattr(model, "_orig_mod", None)
        if isinstance(inner, DistributedDataParallel):
            raise JobError(["the model is compiled around DistributedDataParallel: make it DDP(torch.compile(model))"])
        kind = type(model).__name__
        raise JobError([f"the model is a {kind}: wrap it, Guard(DistributedDataParallel(model)); FSDP is not yet"])
    faults = []
    if every < 1:
        faults.append(f"every is {every}: it is 1 or more")
    if state_every < 0:
        faults.append(f"state_every is {state_every}: it is 0, for never, or more")
    if timeout_s <= 0:
        faults.append(f"timeout_s is {timeout_s}: it is above 0")
    if tolerance is not None and not 0 < tolerance < 1:
        faults.append(f"tolerance is {tolerance}: it is between 0 and 1, or None for equal bits")
    if dist.get_world_size(model.process_group) != dist.get_world_size():
        faults.append("the model's process group is not that of all ranks: other kinds of parallelism are not yet")
    if len({parameter.device for parameter in model.parameters()}) != 1:
        faults.append("the model's parameters are on several devices: a replica on one device is expected")
    if any(getattr(module, "sparse", False) is True for module in model.modules()):
        faults.append("a module has sparse gradients: not yet; give nn.Embedding sparse=False")
    if getattr(model, "mixed_precision", None) is not None:
        faults.append("DistributedDataParallel's own mixed precision is not yet: use torch.autocast")
    if faults:
        raise JobError(faults)
    return model
