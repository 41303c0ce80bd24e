"""Runs a script in which one bit of one gradient flips on one rank: flipped.py RANK BACKWARD SCRIPT [ARGUMENT ...]."""

import itertools
import os
import runpy
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

rank, backward, script = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
sys.argv = sys.argv[3:]
wrap = DistributedDataParallel.__init__


def wrapped(self: DistributedDataParallel, module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
    wrap(self, module, *args, **kwargs)
    passes, armed = itertools.count(1), list[bool]()

    def before(module: torch.nn.Module, args: object) -> None:
        if next(passes) == backward:
            armed.append(True)

    def once(gradient: Tensor) -> Tensor | None:
        """Not again where the guard recomputes."""
        return flip(gradient) if armed and armed.pop() else None

    if int(os.environ["RANK"]) == rank:
        self.register_forward_pre_hook(before)
        list(module.parameters())[5].register_hook(once)


def flip(gradient: Tensor) -> Tensor:
    """An eighth more or less in one of all numbers: no loss and no norm would tell."""
    wrong = gradient.clone()
    wrong.view(torch.int32).view(-1)[7] ^= 1 << 20
    return wrong


DistributedDataParallel.__init__ = wrapped  # type: ignore[method-assign]
runpy.run_path(script, run_name="__main__")
