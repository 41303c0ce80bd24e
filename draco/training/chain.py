"""The digests of each step, taken beside the training: what the server says of them to the chain of its run.

A model of p numbers is digested by a thread while the server waits for the next step's replies: hashlib works without
Python's lock. Whoever writes the model's memory calls `settle` first, which waits for that thread. `job.chain` says
how much is digested; digests that a protocol knows anyway cost nothing and are always recorded.

Shapes: p parameters, b BatchNorm statistics, d = p + b + 1 elements of a step vector, k partitions, m gradients.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from draco.runs import chain as record
from draco.runs.chain import digest

_THREADS = 4  # that digest the vectors of partitions

Say = Callable[[Mapping[str, Any]], None]  # is given the values of each line, in order


class ModelDigests(NamedTuple):
    """The digests of one model."""

    parameters: str  # of the p parameters as workers are sent them
    whole: str  # of the parameters, and behind them the statistics of BatchNorm


class Chain:
    """Digests the steps of a training and hands each step's line on, a step late; without `say` it does nothing."""

    def __init__(self, say: Say | None = None, *, vectors: bool = False) -> None:
        """`vectors`: digest the aggregated vector and those of the partitions, too, not only the model."""
        self._say, self._vectors = say, vectors
        self._pool = ThreadPoolExecutor(_THREADS, "digest") if say else None
        self._partitions = 0
        self._about: dict[str, Any] = {}  # what is known of the step that is being taken
        self._taken: tuple[int, dict[str, Any], Future[ModelDigests]] | None = None
        self._sent = ""  # digest of the parameters that workers are sent now
        self._saved: tuple[int, str] | None = None

    def begin(self, step: int, parameters: Tensor, statistics: Tensor, partitions: int, **about: Any) -> None:
        """Say with which model (p,), (b,) a server begins after `step`; k partitions make a step."""
        if self._say is None:
            return
        found, self._partitions = model_digests(parameters, statistics), partitions
        self._sent = found.parameters
        self._say(
            {
                "line": "launch", "chain": record.VERSION, "step": step, "model": found.whole,
                "parameters": parameters.numel(), "statistics": statistics.numel(), "partitions": partitions, **about,
            }
        )  # fmt: skip

    def about(
        self,
        *,
        vector: Tensor | None = None,
        gradients: Tensor | None = None,
        partitions: Sequence[str | None] | None = None,
        absent: Sequence[int] = (),
    ) -> None:
        """Take down what makes up the step that is about to be taken. All are read before this returns.

        Args:
            vector: the aggregated step vector (d,).
            gradients: (m, d) or wider, what was decoded; they are the partitions' where there are k of them.
            partitions: k digests that are known already, of the same vectors; None for one that is not.
            absent: the rows whose reply was not used because none came, or it was refused.
        """
        if self._say is None:
            return
        found: dict[str, Any] = {"absent": sorted(absent)} if absent else {}
        if partitions is not None:
            found["partitions"] = list(partitions)
        if self._vectors and vector is not None:
            found["vector"] = digest(vector.cpu().numpy())
        if self._vectors and partitions is None and gradients is not None and len(gradients) == self._partitions:
            assert self._pool is not None
            width = gradients.shape[1] if vector is None else vector.numel()
            found["partitions"] = list(self._pool.map(lambda row: digest(row[:width].cpu().numpy()), gradients))
        self._about = found

    def took(self, step: int, parameters: Tensor, statistics: Tensor) -> None:
        """Begin to digest the model (p,), (b,) after `step`; its memory may not change until `settle`."""
        if self._pool is not None:
            self._taken = step, self._about, self._pool.submit(model_digests, parameters, statistics)
            self._about = {}

    def settle(self) -> None:
        """Hand on the line of the last step, once its digests are there."""
        if self._taken is None or self._say is None:
            return
        (step, about, future), self._taken = self._taken, None
        found, before = future.result(), self._sent
        self._sent = found.parameters
        self._say({"line": "step", "step": step, "before": before, "after": found.whole, **about})

    def saved(self, step: int, sha256: str) -> None:
        """Say which file holds the checkpoint of a step, unless that was the last thing said."""
        self.settle()
        if self._say is not None and self._saved != (step, sha256):
            self._say({"line": "checkpoint", "step": step, "sha256": sha256})
            self._saved = step, sha256

    def close(self) -> None:
        """End its threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def back(self, step: int) -> None:
        """Take back the step after `step`, before the model's memory changes; its line was not handed on yet.

        Raises:
            ValueError: it was.
        """
        if self._say is None:
            return
        if self._taken is None or self._taken[0] != step + 1:
            raise ValueError(f"step {step + 1} is not the one whose line is still to be handed on")
        self._taken[2].result()
        self._taken = None


class Kept(Chain):
    """The chain of a run, in its file."""

    def __init__(self, run: Path, step: int, *, vectors: bool) -> None:
        """Go on after `step`; `why` says why what was there before could not be gone on with, or nothing."""
        self._writer, self.why = record.resumed(run / record.NAME, step)
        super().__init__(self._writer.append, vectors=vectors)

    @property
    def head(self) -> str:
        """The digest of the last line."""
        return self._writer.head

    def saved(self, step: int, sha256: str) -> None:
        """See Chain; the lines are on the disk when this returns."""
        super().saved(step, sha256)
        self._writer.sync()

    def close(self) -> None:
        """End its threads and close the file."""
        super().close()
        self._writer.close()


def model_digests(parameters: Tensor, statistics: Tensor) -> ModelDigests:
    """Return the digests of a model's parameters (p,) and statistics (b,), float32."""
    found = hashlib.sha256(parameters.numpy().data)
    sent = found.hexdigest()
    found.update(statistics.numpy().data)
    return ModelDigests(sent, found.hexdigest())
