"""Weights and optimizer states of all ranks, compared every so many steps: they must have the same bits everywhere.

A wrong weight shows in the next gradient, mostly. A wrong momentum shows only in later weights, and then on one rank
alone: all ranks take the same gradients. So all W ranks are replicas of each other here, and a majority tells.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from draco.errors import JobError, UnrepairedError
from draco.torch.claims import Finding, truth
from draco.torch.dispute import spread
from draco.torch.evidence import Register
from draco.torch.measuring import common, describe, draw, exact
from draco.torch.peers import Peers


class StateCheck:
    """Compares the ranks after every `every`-th step of an optimizer, 0 for never. To make it is a collective call.

    Where there is no majority, and steps were not checked since the last comparison, `doubt` is called, and the next
    step decides: it shows which column of ranks computes wrongly.

    Raises:
        JobError: the optimizer keeps other state on other ranks.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        peers: Peers,
        register: Register,
        every: int,
        doubt: Callable[[], None],
    ) -> None:
        if type(optimizer).__name__ == "ZeroRedundancyOptimizer":  # to import it takes long, and warns
            raise JobError(["the optimizer is a ZeroRedundancyOptimizer, whose ranks hold other states: not yet"])
        self._optimizer, self._peers, self._register, self._every = optimizer, peers, register, every
        self._doubt, self._steps, self._last = doubt, 0, 0
        self._secret = common([row[0] for row in peers.rows([draw()])])
        optimizer.register_step_post_hook(self._after)

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Count a step, and compare if it is time."""
        self._steps += 1
        if self._every and self._steps % self._every == 0:
            self._compare()
            self._last = self._steps

    def _compare(self) -> None:
        """Compare all ranks, name those that differ, and repair them."""
        parts = {"weights": self._weights(), "optimizer state": self.states()}
        settings = [describe(value) for value in _plain(self._optimizer)]
        header = torch.frombuffer(bytearray(json.dumps(settings).encode()), dtype=torch.uint8)
        row = [draw()]
        for tensors in (*parts.values(), [header]):
            row += exact(tensors, self._secret)
        rows = self._peers.rows(row)
        self._secret = common([one[0] for one in rows])
        if len({tuple(one[9:]) for one in rows}) > 1:
            raise UnrepairedError(
                f"step {self._register.steps}: the ranks' optimizers have other settings, such as learning rates; "
                "set them the same way on all ranks"
            )
        for place, (what, tensors) in enumerate(parts.items()):
            self._settle(what, tensors, [tuple(one[1 + 4 * place : 5 + 4 * place]) for one in rows])

    def _settle(self, what: str, tensors: list[Tensor], digests: list[tuple[int, ...]]) -> None:
        """Repair the ranks whose digests are not the others'."""
        if len(set(digests)) == 1:
            return
        right = truth(enumerate(digests))
        step = self._register.steps
        if right is None and self._register.steps > self._register.last:
            self._doubt()
            return
        if right is None:
            raise UnrepairedError(
                f"step {step}: the {what} of the ranks differ, and no two ranks more agree than others do; load the "
                "last checkpoint"
            )
        source = next(rank for rank, value in enumerate(digests) if value == right)
        wrong = [rank for rank, value in enumerate(digests) if value != right]
        self._peers.move(tensors, source, wrong)
        columns = self._peers.layout.columns
        agreeing = len(digests) - len(wrong)
        findings = [
            Finding(
                rank,
                what,
                f"its digest is not that of {agreeing} of {len(digests)} ranks{spread(rank, columns, wrong)}",
                f"rank {source} sent its own",
            )
            for rank in wrong
        ]
        self._register.enter(findings, step, step - (self._steps - self._last) + 1)
        self._register.repaired += len(wrong)

    def _weights(self) -> list[Tensor]:
        """Return the optimizer's parameters."""
        return [parameter.data for group in self._optimizer.param_groups for parameter in group["params"]]

    def states(self) -> list[Tensor]:
        """Return the tensors of its state, parameter by parameter."""
        return [value for value in _state(self._optimizer) if isinstance(value, Tensor)]


def _state(optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    """Yield the values of the state, in order of parameters and names."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for _, value in sorted(optimizer.state.get(parameter, {}).items()):
                yield value


def _plain(optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    """Yield the settings of the groups of parameters, and what of the state is no tensor."""
    for group in optimizer.param_groups:
        for name, value in sorted(group.items()):
            if name != "params":
                yield from (value if isinstance(value, list | tuple) else [value])
    for value in _state(optimizer):
        if not isinstance(value, Tensor):
            yield value
