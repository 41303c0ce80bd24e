"""The recomputation of one segment of a run: from its first checkpoint, step by step, as honest workers would.

It is the trainer itself that recomputes, all workers in one process and none of them Byzantine: the same server, codes,
rules, wire format and optimizer. Its digests are compared with the recorded ones, step by step. A worker whose reply
was not used, by the record, sends nothing here either.

Where the bits cannot be expected to be equal the model is compared with the next checkpoint, by the relative distance

    | recomputed - recorded | / | recorded - where the segment began |        (L2 norms over the p parameters)
"""

import math
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from draco.errors import MissingError, TrainingError
from draco.job import Job, sizes
from draco.job.named_sections import SCHEME_KINDS, NoAttackSection
from draco.models import batch_norm
from draco.models.flat import flatten, trained_size, trained_state
from draco.runs.chain import Chain as Record
from draco.runs.chain import digest
from draco.training import checkpoint, checkpoint_check
from draco.training.build import Built
from draco.training.chain import Chain, model_digests
from draco.training.greeting import apart, of_server, platform_of
from draco.training.process import simulated_workers
from draco.training.server import Server
from draco.training.state import Training
from draco.training.transport import Simulated, Task
from draco.training.verify.sample import Segment
from draco.training.worker_momentum import followed

# Of a checkpoint: what does not follow from honest steps. Who was accused, or expelled, does not.
_NO_RESULT = ("step", "steps", "ledger", "job", "torch", "court")

Reply = Callable[[Task, Tensor, Tensor], int | None]


class Difference(NamedTuple):
    """The first thing of a segment that is not what honest workers give."""

    step: int
    what: str  # such as "partition 3", "the model after it"
    recorded: str  # its digest, or number
    honest: str
    note: str = ""  # what the record says of the step besides


class Outcome(NamedTuple):
    """What the recomputation of a segment came to."""

    segment: Segment
    difference: Difference | None  # None: every digest is equal
    distance: float | None  # of the models at its end; None where every digest is equal, or nothing holds the model
    seconds: float


class Replayer:
    """Recomputes segments of one run."""

    def __init__(self, built: Built, record: Record, secret: bytes, losses: Mapping[int, float]) -> None:
        """Take what does not change from segment to segment.

        Args:
            built: the run's job, whose samples are read once.
            record: the run's chain.
            secret: the run's, or any other: without a code the result does not depend on it.
            losses: step -> the loss in the run's events.
        """
        self.built, self.record, self.secret, self.losses = built, record, secret, losses
        self._honest = Built(_honest(built), built.task, built.vote)
        self._honest.train = built.train

    @property
    def expects_bits(self) -> bool:
        """Whether an honest run has the bits that are computed here."""
        return not self.why_no_bits

    @cached_property
    def why_no_bits(self) -> str:
        """Why an honest run may have other bits than are computed here, or nothing."""
        scheme, job = self._honest.scheme, self.built.job
        ours, server = platform_of(job), of_server(job).get("server", "")
        if scheme.amplification is not None and scheme.redundancy > 1:
            return f"{scheme.name} decodes up to rounding, which differs with who lied"
        others = sorted({each for launch in self.record.launches for each in launch["platforms"]} - {ours})
        if others:
            return apart(others[0], ours)
        if job.device != "cpu" and not job.deterministic:
            return "GPUs need not repeat their bits (deterministic: false)"
        servers = sorted({str(launch.get("server", "")) for launch in self.record.launches} - {server})
        return f"of the server: {apart(servers[0] or 'cpu', server or 'cpu')}" if servers else ""

    def replay(self, segment: Segment) -> Outcome:
        """Recompute a segment: to its first difference, or to its end where bits cannot be expected to be equal.

        Raises:
            MissingError: a step of it cannot be recomputed.
            CheckpointError: its checkpoint cannot be used.
        """
        began, training = time.monotonic(), self._restored(segment)
        if _digest(training) != self.record.model(segment.start):
            return Outcome(segment, self._other_start(segment, training), None, time.monotonic() - began)
        start, lines, first = training.flat.clone().cpu(), list[Mapping[str, Any]](), None
        vectors = any("vector" in self.record.steps[t] for t in range(segment.start + 1, segment.stop + 1))
        training.chain = Chain(lines.append, vectors=vectors)
        parts = self._honest.scheme.assignment.shape[1]
        training.chain.begin(segment.start, training.flat.cpu(), training.statistics.cpu(), parts)
        server = self._server(training)
        try:
            while training.step < segment.stop and (first is None or not self.expects_bits):
                (event,) = server.run_step()
                training.chain.settle()
                first = first or self._difference(lines[-1], event["loss"])
        except TrainingError as error:
            raise MissingError(
                f"step {training.step + 1}: honest workers cannot take it from what is recorded: {error}"
            ) from error
        finally:
            training.chain.close()
        distance = None
        if training.step == segment.stop and segment.last is not None:
            contents = self.contents(segment.last)
            distance = None if first is None else _distance(contents["model"], training, start)
            first = first or _unlike(contents, training.contents(), segment.stop)
        return Outcome(segment, first, distance, time.monotonic() - began)

    def contents(self, path: Path) -> checkpoint.Contents:
        """Return what a checkpoint holds.

        Raises:
            CheckpointError: it cannot be used.
        """
        model = self.built.model
        limit = checkpoint_check.limit(self.built.job, trained_state(model), trained_size(model))
        return checkpoint.load(path, limit)

    def model_in(self, step: int, path: Path) -> str:
        """Return the digest of the model that the checkpoint of a step holds.

        Raises:
            CheckpointError: it cannot be used.
        """
        model, contents = self.built.again().model, self.contents(path)
        if why := checkpoint_check.model_misfit(contents, trained_state(model), self.built.job, step):
            raise checkpoint.CheckpointError(why, path)
        model.load_state_dict(contents["model"], strict=False)  # without frozen parameters
        statistics = batch_norm.read_statistics(model, torch.zeros(batch_norm.statistics_size(model)))
        return model_digests(flatten(model), statistics).whole

    def _restored(self, segment: Segment) -> Training:
        """Return a training as it was where a segment begins."""
        training = Training(self.built.again())
        if segment.first is not None:
            contents = self.contents(segment.first)
            try:
                training.restore(segment.start, contents)
            except checkpoint.CheckpointError as error:
                raise checkpoint.CheckpointError(error.why, segment.first) from error
        return training

    def _other_start(self, segment: Segment, training: Training) -> Difference:
        found = _digest(training)
        what = "the job's initial model" if segment.first is None else f"the model in {segment.first.name}"
        return Difference(segment.start, what, str(self.record.model(segment.start)), found)

    def _server(self, training: Training) -> Server:
        """Return a server that goes on with a training, with honest workers in this process."""
        job = self._honest.job
        workers = simulated_workers(self._honest.again())
        transport = Simulated([self._recorded(worker.reply) for worker in workers], [], [w.momenta for w in workers])
        if job.local.momentum:
            kept = [followed(job, rank) for rank in range(1, job.workers + 1)]
            transport.hand_momenta([training.worker_momenta[rows.start : rows.stop] for rows in kept])
        return Server(self._honest, training, transport, self.secret)

    def _recorded(self, reply: Reply) -> Reply:
        """Return a worker that sends nothing at the steps at which, by the record, its row's reply was not used."""

        def answer(task: Task, model: Tensor, frame: Tensor) -> int | None:
            absent = task.row in self.record.steps[task.step].get("absent", ())
            return None if absent else reply(task, model, frame)

        return answer

    def _difference(self, honest: Mapping[str, Any], loss: float) -> Difference | None:
        """Return the first thing in a step's recorded line that is not as it was recomputed."""
        step = honest["step"]
        line = self.record.steps[step]
        absent = line.get("absent")
        note = f"; rows {', '.join(map(str, absent))} sent nothing that was used" if absent else ""
        partitions = zip(line.get("partitions", ()), honest.get("partitions", ()), strict=False)
        pairs = [("the model before it", line["before"], honest["before"])]
        pairs += [(f"partition {j}", *each) for j, each in enumerate(partitions) if None not in each]
        pairs += [("the aggregated vector", line["vector"], honest["vector"])] if "vector" in line else []
        pairs += [("the model after it", line["after"], honest["after"])]
        if step in self.losses and self._honest.scheme.exact:  # else lies may show in it, within the promise
            pairs += [("the loss in events.jsonl", repr(self.losses[step]), repr(loss))]
        return next((Difference(step, what, a, b, note) for what, a, b in pairs if a != b), None)


def _honest(built: Built) -> Job:
    """Return the job of honest workers, one for each partition where a protocol of several rounds deals them out."""
    honest = built.job.model_copy(update={"attack": NoAttackSection(name="none")})
    if built.protocol is None:
        return honest
    return honest.model_copy(
        update={"scheme": SCHEME_KINDS["uncoded"](name="uncoded"), "workers": sizes(built.job).partitions}
    )


def _digest(training: Training) -> str:
    return model_digests(training.flat.cpu(), training.statistics.cpu()).whole


def _distance(state: Mapping[str, Tensor], training: Training, start: Tensor) -> float:
    """Return how far a training's parameters are from those of a checkpoint's model, relative to the way from start."""
    names = [name for name, parameter in training.model.named_parameters() if parameter.requires_grad]
    recorded = torch.cat([state[name].reshape(-1) for name in names])
    way = float(torch.linalg.vector_norm((recorded - start).double()))
    apart = float(torch.linalg.vector_norm((recorded - training.flat.cpu()).double()))
    return apart / way if way else math.inf if apart else 0.0


def _unlike(recorded: checkpoint.Contents, honest: checkpoint.Contents, step: int) -> Difference | None:
    """Return the first result of the steps that a checkpoint holds otherwise; both are of the same kind."""
    for key in honest:
        if key not in _NO_RESULT and (found := _unequal(recorded.get(key), honest[key], key)):
            return Difference(step, f"{found[0]} in its checkpoint", *map(_shown, found[1:]))
    return None


def _unequal(a: Any, b: Any, where: str) -> tuple[str, Any, Any] | None:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
        return None if same else (where, a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        inner = ((a[key], b[key], f"{where}.{key}") for key in a)
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        inner = ((x, y, f"{where}.{i}") for i, (x, y) in enumerate(zip(a, b, strict=True)))
    else:
        return None if a == b else (where, a, b)
    return next(filter(None, (_unequal(x, y, name) for x, y, name in inner)), None)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return digest(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return repr(value)[:80]
