"""The server's state: the model, its optimizer, and everything else that changes from step to step.

It is what a checkpoint holds. Shapes: n workers, p parameters, b BatchNorm statistics, d = p + b + 1 (gradients.py).
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from draco.aggregators import AGGREGATORS
from draco.job import to_dict, total_steps
from draco.models import batch_norm
from draco.models.flat import flatten, trained_state
from draco.own import is_path
from draco.own_function import watched
from draco.protocols.court import Proof
from draco.tasks import count
from draco.tasks.batch import mapped
from draco.training import build, checkpoint, checkpoint_check, staging
from draco.training.average import Average
from draco.training.build import Built
from draco.training.chain import Chain
from draco.training.clipping import clipped


@dataclass
class Ledger:
    """The count of Byzantine workers caught and missed and of honest ones accused, per worker and step."""

    caught: int = 0
    missed: int = 0
    falsely_accused: int = 0
    suspicions: dict[int, int] = field(default_factory=dict)  # rank -> steps at which it was a suspect

    def note(self, suspects: set[int], byzantine: set[int]) -> None:
        """Count one step; `byzantine` are those that took part."""
        self.caught += len(suspects & byzantine)
        self.missed += len(byzantine - suspects)
        self.falsely_accused += len(suspects - byzantine)
        for rank in suspects:
            self.suspicions[rank] = self.suspicions.get(rank, 0) + 1


class Taken(NamedTuple):
    """What is told of an optimizer step."""

    lr: float  # the learning rate used
    gradient_norm: float | None  # before it was clipped; None where the job does not clip


def _watched(name: str) -> AbstractContextManager[None]:
    """Name a user's own optimizer or schedule in what its step raises."""
    return watched(f"{name}: step()") if is_path(name) else nullcontext()


class Training:
    """The server's model and everything else that changes from step to step, all of it on the server's device.

    Only `sent` is in host memory: the parameters (p,) as workers are sent them. On the CPU they are `flat` itself.
    """

    def __init__(self, built: Built) -> None:
        self.job = job = built.job
        self.device = built.server_device
        self.model = built.model.to(self.device)
        self.flat = flatten(self.model)  # (p,): the memory of every parameter
        self.sent = self.flat if self.flat.is_cpu else staging.host_vectors(self.device, 1, self.flat.numel())[0]
        self.optimizer = build.build_optimizer(job, nn.Parameter(self.flat))
        self.statistics = torch.zeros(batch_norm.statistics_size(self.model), device=self.device)
        batch_norm.read_statistics(self.model, self.statistics)
        # (b,): weights of a step in the running ones
        self.momenta = batch_norm.statistics_momenta(self.model).to(self.device)
        self.steps = total_steps(job, count(built.train))
        self.schedule = build.build_schedule(job, self.optimizer, self.steps)
        self.worker_momenta = torch.zeros(
            job.workers if job.local.momentum else 0, self.flat.numel(), device=self.device
        )  # (n, p), by rank
        self.step = 0
        self.ledger = Ledger()
        self.proofs: dict[int, Proof] = {}  # of the workers that are expelled, by rank
        self.watched: set[int] = set()  # workers that did not open a commitment; in events, and not in checkpoints
        # (p,): the last step's gradient, from which a rule that remembers starts. It is part of a checkpoint.
        self.centre = torch.zeros_like(self.flat) if AGGREGATORS[job.aggregator.name].remembers else None
        self.average = Average(self.flat, job.ema) if job.ema else None
        self.chain = Chain()  # is told of every step; see chain.py
        self._send()

    @property
    def elements(self) -> int:
        """d: length of a step vector."""
        return self.flat.numel() + self.statistics.numel() + 1

    def update(self, vector: Tensor) -> Taken:
        """Take one optimizer step with the aggregated step vector (d,)."""
        self.chain.settle()
        p, limit = self.flat.numel(), self.job.clip_norm
        gradient, norm = (vector[:p], None) if limit is None else clipped(vector[:p], limit)
        rate = float(self.schedule.get_last_lr()[0])
        if self.centre is not None:
            self.centre.copy_(vector[:p])  # not clipped: a rule compares it with gradients that are not, either
        self.optimizer.param_groups[0]["params"][0].grad = gradient
        with _watched(self.job.optimizer.name):
            self.optimizer.step()
        if self.average is not None:
            self.average.update(self.flat, self.step)
        with _watched(self.job.schedule.name):
            self.schedule.step()
        if self.statistics.numel():
            self.statistics += self.momenta * (vector[p:-1] - self.statistics)
            batch_norm.write_statistics(self.model, self.statistics)
        self.step += 1
        self._send()
        self.chain.took(self.step, self.sent, self.statistics.cpu())
        return Taken(rate, norm)

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """Yield the model with the weights that are evaluated: their moving average where the job keeps one."""
        if self.average is None:
            yield self.model
            return
        self.chain.settle()
        last = self.flat.clone()
        self.flat.copy_(self.average.weights)
        try:
            yield self.model
        finally:
            self.flat.copy_(last)

    def _send(self) -> None:
        """Bring the parameters to where workers are sent them from, which the chain has read."""
        if self.sent is not self.flat:
            self.sent.copy_(self.flat)

    def contents(self) -> checkpoint.Contents:
        """Return what a checkpoint holds: tensors of the CPU, wherever the training is."""
        court = {"court": {rank: tuple(proof) for rank, proof in self.proofs.items()}}
        state = self._state()
        return (state if self.flat.is_cpu else mapped(state, lambda tensor: tensor.cpu())) | {
            "steps": self.steps,
            "job": to_dict(self.job),
            "torch": str(torch.__version__),
            **(court if build.has_court(self.job) else {}),
        }

    def snapshot(self) -> checkpoint.Contents:
        """Return a copy of all that a step changes, to go `back` to; who was expelled stays so."""
        return copy.deepcopy(self._state())

    def back(self, snapshot: checkpoint.Contents) -> None:
        """Go back to a snapshot, from the step after it."""
        self.chain.back(snapshot["step"])
        self._go_to(snapshot["step"], snapshot)

    def _state(self) -> checkpoint.Contents:
        return {
            "step": self.step,
            "model": trained_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ledger": vars(self.ledger),
            **({} if self.centre is None else {"centre": self.centre}),
            **({"momenta": self.worker_momenta} if self.job.local.momentum else {}),
            **({} if self.average is None else {"average": self.average.weights}),
        }

    def restore(self, step: int, contents: checkpoint.Contents) -> None:
        """Go back to where a checkpoint was taken: wholly, or not at all where it is none of this job at that step.

        Raises:
            CheckpointError: why it is not.
        """
        if why := checkpoint_check.misfit(contents, self.contents(), self.job, step, self.flat.numel()):
            raise checkpoint.CheckpointError(why)
        self._go_to(step, contents)
        self.proofs = {rank: Proof(*proof) for rank, proof in contents.get("court", {}).items()}

    def _go_to(self, step: int, contents: checkpoint.Contents) -> None:
        self.chain.settle()
        try:
            self.optimizer.load_state_dict(contents["optimizer"])
            self.schedule.load_state_dict(contents["schedule"])
        except Exception as error:  # of a user's own; ours take what fits
            raise checkpoint.CheckpointError(f"{type(error).__name__}: {error}") from error
        self.model.load_state_dict(contents["model"], strict=False)  # without frozen parameters
        batch_norm.read_statistics(self.model, self.statistics)
        self.ledger = Ledger(**contents["ledger"])
        if self.centre is not None:
            self.centre.copy_(contents["centre"])
        if self.job.local.momentum:
            self.worker_momenta.copy_(contents["momenta"])
        if self.average is not None:
            self.average.weights.copy_(contents["average"])
        self.step = step
        self._send()
