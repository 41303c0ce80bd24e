"""The parameter server: broadcast model -> collect replies -> decode -> aggregate -> optimizer step -> checkpoint.

One loop serves every scheme and both transports. The server trusts no worker. A reply is checked for size, dtype, step
and finiteness before anything reads it. Every wait has a limit. Rows of the code are handed out from a fresh secret
permutation each step.

Workers that are gone, or late beyond its patience, are erasures where the scheme tolerates them (`Scheme.tolerates`).
Where it does not, the run ends `lost` and its supervisor starts it again.

Shapes: n workers, d = p + b + 1 elements of a step vector (see gradients.py), m gradients after decoding.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from draco import files
from draco.data import shards
from draco.errors import DecodeError, TrainingError, WorkerError
from draco.job import Job, attack, keeps_rows, sizes, to_dict, to_words
from draco.models.flat import trained_state
from draco.protocols.court import Proof
from draco.runs import directory as run_directory
from draco.runs import events, hold, machine
from draco.runs.chain import digest
from draco.runs.events import EventLog
from draco.runs.expulsions import expulsions
from draco.sampling import derive_seed, draw_rows
from draco.schemes import SCHEMES
from draco.training import (
    adversary,
    checkpoint,
    checkpoint_check,
    device,
    ending,
    greeting,
    initial_weights,
    rehearsal,
    room,
    task_check,
)
from draco.training.appraisal import Appraisal
from draco.training.build import Built, has_court
from draco.training.chain import Chain, Kept
from draco.training.clock import Clock, rounded
from draco.training.collect import Collector, DivergedError, Replies
from draco.training.greeting import Greeting
from draco.training.loggers import Loggers
from draco.training.pair_server import PairServer, require_alike
from draco.training.reduce import build_reduce
from draco.training.state import Training
from draco.training.transport import ServerTransport, Task
from draco.training.worker_momentum import followed

DRAWS = 3  # of the rows of one step, after which its replies are given up as not decodable


class Server:
    """Runs the steps of one job."""

    def __init__(
        self,
        built: Built,
        training: Training,
        transport: ServerTransport,
        secret: bytes,
        nodes: Sequence[str] | None = None,
    ) -> None:
        """`nodes[rank - 1]` is the machine that hosts a worker; None: they share one."""
        job, scheme = built.job, built.scheme
        self.job, self.training, self.transport, self.secret = job, training, transport, secret
        momentum = training.flat.numel() if job.local.momentum else 0
        self.collector = Collector(job, scheme, transport, built.format, momentum, training.device)
        self.reduce = build_reduce(built, training)
        self.groups = scheme.groups()
        self.nodes = nodes

    def settle(self) -> list[dict[str, Any]]:
        """Return nothing: a step is right once it is taken."""
        return []

    def run_step(self) -> list[dict[str, Any]]:
        """Take one step and return its event.

        Raises:
            TrainingError: it cannot be taken; see `collect.Collector` for how.
        """
        step = self.training.step + 1
        clock = Clock()
        rows, replies, redrawn = self._collected(step, clock)
        vector = self.reduce(replies.decoded.gradients, step, rows, {*replies.absent, *replies.refused})
        clock.lap("aggregate")
        missing = [rows[rank - 1] for rank in {*replies.absent, *replies.refused}]
        self.training.chain.about(vector=vector, gradients=replies.decoded.gradients, absent=missing)
        taken = self.training.update(vector)
        for rank, momentum in replies.momenta.items():  # a worker that was refused keeps its last one
            self.training.worker_momenta[rank - 1] = momentum
        clock.lap("update")
        clock.split_exchange(replies.timings, self.transport.concurrent)
        by_row = {row: rank for rank, row in enumerate(rows, start=1)}
        suspects = {by_row[row] for row in replies.decoded.suspects} | set(replies.refused)
        lost = {*self.transport.gone()} - {*replies.refused}
        byzantine = {*adversary.byzantine(self.job, step, rows, self.groups)} - replies.absent
        if (declared := attack(self.job)) and declared.truthful:
            byzantine = set()
        self.training.ledger.note(suspects, byzantine)  # without those who sent nothing, or the truth
        error = replies.decoded.error
        event = {
            "step": step,
            "loss": vector[-1].item(),
            "lr": taken.lr,
            **({} if taken.gradient_norm is None else {"gradient_norm": taken.gradient_norm}),
            "suspects": sorted(suspects),
            "byzantine": sorted(byzantine),
            "refused": {str(rank): why for rank, why in sorted(replies.refused.items())},
            "lost": sorted(lost),
            "straggling": sorted(replies.absent - lost),
            "seconds": rounded(clock.seconds),
            "bytes_received": replies.bytes_received,
            **({} if error is None else {"decoding_error": error}),
            **({"waited": rounded(replies.waited)} if replies.waited else {}),
            **({"redrawn": redrawn} if redrawn else {}),
        }
        return [event]

    def _collected(self, step: int, clock: Clock) -> tuple[list[int], Replies, list[str]]:
        """Return every worker's row, the step's replies, and why those to earlier draws of rows were not decodable.

        Rows are drawn anew where errors can be explained in two ways: with other rows that hardly happens again.
        """
        seed, redrawn = derive_seed(self.secret, "projections", step), list[str]()
        while True:
            rows = self._rows(step, len(redrawn))
            leak = adversary.leak(self.job, self.secret, step, rows)
            try:
                tasks = [Task(step, row, leak) for row in rows]
                replies = self.collector.collect(tasks, self.training.sent, seed, clock.lap)
                return rows, replies, redrawn
            except DecodeError as error:
                redrawn.append(str(error))
                if keeps_rows(self.job) or len(redrawn) == DRAWS:
                    raise

    def _rows(self, step: int, attempt: int) -> list[int]:
        """Draw every worker's row; a worker whose late reply is still coming into a row keeps that row.

        Where workers own samples or momentum, worker i has row i - 1 at every step. That is only so without a code, and
        harmless: aggregators treat all rows alike.
        """
        if keeps_rows(self.job):
            return list(range(self.job.workers))
        rows = draw_rows(self.secret, step, self.job.workers, self.groups, self.nodes, attempt)
        for rank, row in self.transport.held().items():
            other = rows.index(row)
            rows[other], rows[rank - 1] = rows[rank - 1], row
        return rows


def choose_vote(job: Job, greetings: Sequence[Greeting | None]) -> tuple[str, str]:
    """Return the vote to take and why: bits only where all workers say that they compute alike.

    A worker that reports something false can at most bring about the tolerance vote, which is safe too.
    """
    if (vote := job.scheme.get("vote")) != "auto":
        return vote, "the job says so"
    if job.device != "cpu" and not job.deterministic:
        return "tolerance", "GPUs need not repeat their bits (deterministic: false)"
    kinds = sorted({said.platform for said in greetings if said and not said.fault})
    if len(kinds) == 1:
        return "exact", "all workers report the same torch, instruction set, threads and device"
    if job.precision == "float64_rounded":
        return "tolerance", (
            f"workers report {len(kinds)} different platforms, and round float64: honest ones differ by ties only"
        )
    return "tolerance", f"workers report {len(kinds)} different platforms: {greeting.unlikeness(greetings)}"


def train(built: Built, run: Path, transport: ServerTransport) -> None:
    """Run the built job in `run` from its newest checkpoint to its last step, or until it is asked to stop.

    Raises:
        TrainingError: the run failed; its state says so and a checkpoint holds what was done.
        RefusedError: another server writes into the run.
    """
    # The one before may still be ending: it was killed by a process that is not its parent.
    with hold.take(run / hold.SERVER, f"{run}: another server writes into it", wait_s=10.0):
        log = EventLog(run / "events.jsonl")
        try:
            sees = task_check.look(built, run, log, again=not transport.concurrent)
            room.require_on_gpu(built)
            training = Training(built)
            if built.job.task is not None:  # of others it is known before
                room.require(run, training)
        except BaseException as error:
            ending.record_refusal(run, log, ending.reason(error, run))
            raise
        _train(built, training, run, log, transport, sees)


def _train(built: Built, training: Training, run: Path, log: EventLog, transport: ServerTransport, sees: str) -> None:
    """`sees`: what the server sees of a task of the job's own; workers are compared with that."""
    job = built.job
    server: Server | PairServer | None = None
    try:
        _resume(training, run, log)
        run_directory.write_status(run, "running", training.step)
        greetings = [greeting.read(said) for said in transport.greetings(job.start_timeout_s)]
        greeting.require_all(greetings, job.scheme.adversaries)
        task_check.require_agreement(job, sees, greetings, log)
        vote, why = choose_vote(job, greetings)
        built.vote = vote  # before the scheme is asked for
        if built.protocol is not None and "sketch" not in built.protocol.sends:
            require_alike(greetings, job)
        weights = initial_weights.recorded(job.weights, run)
        rehearsal.rehearse(built)
        voted = "vote" in SCHEMES[job.scheme.name].options
        summary = built.scheme.summary if built.protocol is None else built.protocol.summary
        about = {"vote": vote, "vote_reason": why} if voted else _about_shards(built)
        if built.protocol is not None and built.protocol.failure is not None:
            about |= {"failure_probability": built.protocol.failure}
        if built.protocol is not None and built.protocol.expected_false is not None:
            about |= {"expected_false": built.protocol.expected_false}
        server = _server(built, training, transport, run, log, greetings)
        if isinstance(server, PairServer) and server.replayer is not None:
            advice = server.replayer.advice(training.sent, sizes(job).partitions, job.scheme.adversaries)
            summary = f"{summary}; {advice}"
        log.write(
            "start", job=to_dict(job), setting=to_words(job), steps=training.steps, summary=summary,
            elements=training.elements, machine=machine.describe(), server_device=_name(training), **weights, **about,
        )  # fmt: skip
        training.chain = _chain(built, training, run, greetings, log)
        if job.local.momentum:
            kept = [followed(job, rank) for rank in range(1, job.workers + 1)]
            momenta = training.worker_momenta.cpu()
            transport.hand_momenta([momenta[rows.start : rows.stop] for rows in kept])
        state, message = _steps(server, built, run, log)
        transport.stop()
    except KeyboardInterrupt:  # in the midst of a step, maybe of an update: the newest checkpoint counts
        ending.record_end(training, run, log, "interrupted", "killed by its user", save=False)
        raise
    except BaseException as error:
        if isinstance(server, PairServer):
            server.forsake()
        state = "lost" if isinstance(error, WorkerError) else "failed"
        whole = not isinstance(error, room.FullError)
        ending.record_end(training, run, log, state, ending.reason(error, run), save=whole)
        raise
    ending.record_end(training, run, log, state, message)


def _server(
    built: Built, training: Training, transport: ServerTransport, run: Path, log: EventLog,
    greetings: Sequence[Greeting | None],
) -> Server | PairServer:  # fmt: skip
    secret, nodes = run_directory.secret(run), run_directory.nodes(run)
    if built.protocol is None:
        return Server(built, training, transport, secret, nodes)
    server = PairServer(built, training, transport, secret, log, greetings)
    server.court.nodes = nodes
    return server


def _chain(built: Built, training: Training, run: Path, greetings: Sequence[Greeting | None], log: EventLog) -> Chain:
    """Go on with the run's chain of digests, or begin it; where the job wants none, one that does nothing."""
    job = built.job
    if job.chain == "none":
        return Chain()
    kept = Kept(run, training.step, vectors=job.chain == "partitions")
    if kept.why:
        log.write("refused_chain", why=kept.why)
    text, platforms = (run / "job.yaml").read_bytes(), {said.platform for said in greetings if said and not said.fault}
    kept.begin(
        training.step, training.sent, training.statistics.cpu(), built.scheme.assignment.shape[1],
        job=digest(text), platforms=sorted(platforms), vote=built.vote, **greeting.of_server(job),
    )  # fmt: skip
    return kept


def _about_shards(built: Built) -> dict[str, Any]:
    """Return what the start event says of heterogeneous data: samples of each class by worker, and a summary."""
    owned = built.shards
    if owned is None:
        return {}
    labels = built.task.labels(built.train)
    assert labels is not None
    counts = shards.class_counts(labels, owned, int(labels.max()) + 1)
    return {"class_counts": counts, "data_summary": shards.summary(built.job.data.split, counts)}


def _resume(training: Training, run: Path, log: EventLog) -> None:
    """Go back to the newest checkpoint that can be used, telling of those that cannot."""

    def refuse(path: Path, why: str) -> None:
        log.write("refused_checkpoint", file=path.name, why=why)

    files.remove_temporaries(run, run_directory.exists)
    limit = checkpoint_check.limit(training.job, trained_state(training.model), training.flat.numel())
    used = checkpoint.newest_usable(run / "checkpoints", limit, training.restore, refuse)
    if has_court(training.job):  # who was expelled after that checkpoint has no other try
        for found in expulsions(events.read(run / "events.jsonl"), forgets=False).values():
            training.proofs.setdefault(found.rank, Proof(*found[1:]))
        watched = (event for event in events.read(run / "events.jsonl") if event["event"] == "watched")
        training.watched |= {event["rank"] for event in watched}
    if used is not None:
        before = [str(event.get("server_device", "cpu")) for event in events.read(run / "events.jsonl")
                  if event["event"] == "start"][-1:]  # fmt: skip
        moved = (
            {"before_on": before[0], "server_device": _name(training)} if before not in ([], [_name(training)]) else {}
        )
        out = {str(rank): proof._asdict() for rank, proof in sorted(training.proofs.items())}
        expelled = {"expelled": out} if has_court(training.job) else {}
        log.write("resume", step=training.step, file=used.name, **expelled, **moved)


def _name(training: Training) -> str:
    """Return where the server decodes, aggregates and steps: `cpu`, or its GPU's name."""
    return device.name(training.device)


def _steps(server: Server | PairServer, built: Built, run: Path, log: EventLog) -> tuple[run_directory.State, str]:
    """Take the remaining steps; return the state in which the run ends, and why where that is before its last step."""
    job, training = server.job, server.training
    with contextlib.closing(Loggers(job, run, training.step, log)) as loggers:
        appraisal = Appraisal(built, training, run, log, loggers)

        def tell(events: Sequence[dict[str, Any]]) -> None:
            for event in events:
                event["seconds"] |= loggers.spent()
                loggers.step(log.write("step", **event))

        early = appraisal.look()
        while training.step < training.steps and not early:
            if (run / "stop").exists():
                tell(server.settle())
                return "interrupted", "asked to stop"
            if (run / "checkpoint").exists():  # asked for where the run may end before its next checkpoint
                (run / "checkpoint").unlink()
                tell(server.settle())
                ending.save_checkpoint(training, run, log)
            with room.watched(training):
                tell(_step(server, built))
            saves = training.step == training.steps or (
                job.checkpoint_every and training.step % job.checkpoint_every == 0
            )
            if saves or appraisal.due():
                tell(server.settle())
            if saves:
                ending.save_checkpoint(training, run, log)
            early = appraisal.look()
    return "succeeded", early


def _step(server: Server | PairServer, built: Built) -> list[dict[str, Any]]:
    """Take one step; where the loss of a job's own task was not finite, say whose and why."""
    try:
        return server.run_step()
    except DivergedError as error:
        why = task_check.blame(built, server.training.step + 1)
        raise (TrainingError(f"{error} {why}") if why else error) from None
