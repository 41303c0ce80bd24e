"""The clipping and the momentum of a worker: what it does to its gradient before it is sent, and who keeps it.

Both act on the gradient part of the worker's step vector, its first p elements as they would be sent. The BatchNorm
statistics and the loss behind them are left alone, and do not count in the norm. With momentum the worker sends,
instead of its gradient g_t at step t,

    m_t = beta m_{t-1} + (1 - beta) g_t,    m_0 = 0.

Sources: Karimireddy, He, Jaggi, Learning from history for Byzantine robust optimization, ICML 2021 (arXiv:2012.10333);
El Mhamdi, Guerraoui, Rouault, Distributed momentum for Byzantine-resilient stochastic gradient descent, ICLR 2021
(arXiv:2003.00010), who leave out the factor 1 - beta.

Shapes: p parameters, d = p + b + 1 elements of a step vector (see gradients.py).
"""

import torch
from torch import Tensor

from draco.aggregators.rows import is_finite
from draco.job import Job, attack
from draco.job.sections import LocalSection
from draco.training import adversary
from draco.training.clipping import clip

_ALIGNMENT = 64  # bytes; frames laid one behind the other stay on cache lines


class LocalSteps:
    """Clipping and momentum of the workers that one process follows. A worker has the same row at every step."""

    def __init__(self, spec: LocalSection, parameters: int, rows: range, device: torch.device | str = "cpu") -> None:
        """`device`: where the vectors are, and the momenta are kept."""
        self._spec, self._parameters, self._rows = spec, parameters, rows
        self.momenta = torch.zeros(len(rows), parameters if spec.momentum else 0, device=device)  # (rows, p)
        self._before = torch.zeros_like(self.momenta)  # of the step before `_steps`
        self._steps = [0] * len(rows)

    def of(self, rows: range) -> Tensor:
        """Return the momenta (rows, p) that some of the rows have sent last, to be read or written."""
        return self.momenta[rows.start - self._rows.start : rows.stop - self._rows.start]

    def __call__(self, step: int, row: int, vector: Tensor) -> None:
        """Turn the step vector (d,) of a row's gradient at `step` into the one that it sends, in place.

        Called again at the same step, it starts from the same momentum, and the last call counts. A vector that is not
        finite changes no momentum and is sent as it is. The server refuses it, and so learns of it.
        """
        gradient, beta = vector[: self._parameters], self._spec.momentum
        if self._spec.clip is not None:
            clip(gradient, self._spec.clip)
        if not beta:
            return
        at = self._rows.index(row)
        if step != self._steps[at]:
            self._steps[at] = step
            self._before[at] = self.momenta[at]
        if bool(torch.isfinite(vector).all()):
            torch.mul(self._before[at], beta, out=self.momenta[at]).add_(gradient, alpha=1 - beta)
            gradient.copy_(self.momenta[at])


def followed(job: Job, rank: int) -> range:
    """Return the rows whose momenta the worker `rank` keeps: its own, or all where it may be Byzantine and informed."""
    if not job.local.momentum:
        return range(0)
    knows_all = adversary.informed(job) and adversary.may_be_byzantine(job, rank)
    return range(job.workers) if knows_all else range(rank - 1, rank)


class Attached:
    """The honest momentum at the end of a simulated Byzantine worker's frame, for the server's checkpoints.

    What an honest worker sends is its momentum. A Byzantine worker sends another vector, so it attaches its momentum.
    Worker i keeps row i - 1 at every step.
    """

    def __init__(self, job: Job, parameters: int) -> None:
        self._job = job
        self._bytes = 4 * parameters if job.local.momentum and attack(job) else 0
        self.room = -(-self._bytes // _ALIGNMENT) * _ALIGNMENT  # bytes that a frame needs for it

    def write(self, step: int, rank: int, local: LocalSteps | None, rest: Tensor) -> int:
        """Write the rank's momentum into the rest of its frame; return how many bytes, 0 where nothing is attached."""
        if local is None or not self._is_by(step, rank):
            return 0
        rest[: self._bytes] = local.of(range(rank - 1, rank))[0].cpu().view(torch.uint8)
        return self._bytes

    def take(self, step: int, rank: int, frame: Tensor, length: int) -> tuple[int, Tensor | None]:
        """Return the length of what stands before the momentum in the rank's frame, and the momentum (p,) if usable."""
        if not self._is_by(step, rank):
            return length, None
        own = max(length - self._bytes, 0)
        end = frame[own:length].clone()  # aligned
        whole = len(end) == self._bytes and is_finite(end.view(torch.float32))
        return own, end.view(torch.float32) if whole else None

    def _is_by(self, step: int, rank: int) -> bool:
        return self._bytes > 0 and rank in adversary.byzantine(self._job, step, range(self._job.workers))
