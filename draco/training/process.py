"""The part of one process in a run: rank 0 is the server, the others are workers; or one process is all of them."""

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from draco.code import recorded
from draco.errors import DracoError, JobError, MissingError, OwnCodeError
from draco.job import Job, attack, parse, to_yaml
from draco.runs import spoken, stages
from draco.runs.directory import read_job
from draco.training import (
    adversary,
    device,
    greeting,
    initial_weights,
    repeatable,
    server,
    staging,
    task_check,
    transport,
    wire,
)
from draco.training.build import Built
from draco.training.gradients import Remembered, StepVectors
from draco.training.greeting import Greeting
from draco.training.pair_worker import PairWorker, build_pair_workers
from draco.training.simulated_byzantine import ByzantineWorker, Knowledge
from draco.training.worker import Worker, build_vectors, build_worker, momenta_of
from draco.training.worker_momentum import followed


def load() -> None:
    """Load what every process of a run needs besides this module's imports: in a fork server, for all its ranks."""
    importlib.import_module("ruamel.yaml")  # which is imported when a job is read
    transport.load()


def main(run: Path, simulate: bool) -> None:
    """Do this process's part in the run. Only the server, or the simulation, looks into the run directory."""
    if simulate:
        failed = True
        try:
            _simulate(run)
            failed = False
        except DracoError as error:
            _tell(error)
        if failed:
            sys.exit(1)
        return
    stages.say("imported")
    rank, size = transport.rank_and_size()
    try:
        if rank:
            worker_side = transport.worker_side(spoken.name(run), rank)
            stages.say("joined")
            _leave_signals_to_the_server()
            whole = _work(rank, worker_side)
        else:
            _obey_signals(run)
            server_side = transport.server_side(spoken.name(run), size)
            stages.say("joined")
            whole = _serve(run, server_side)
    except transport.ServerGone:
        transport.fail()
    except BaseException as error:
        _tell(error)
        transport.fail()
    transport.leave(finalize=whole)


def _simulate(run: Path) -> None:
    _obey_signals(run)
    recorded.verify_here()
    job = read_job(run)
    torch.set_num_threads(job.threads)
    serve_all(Built(job), run)


def _tell(error: BaseException) -> None:
    """Print an error: of one that says all in its sentence only that, after the traceback of a user's own code."""
    if not isinstance(error, DracoError):
        traceback.print_exception(error)
        return
    if isinstance(error, OwnCodeError) and error.__cause__ is not None:
        traceback.print_exception(error.__cause__)
    sys.stderr.write("".join(traceback.format_exception_only(error)))
    sys.stderr.flush()


def _serve(run: Path, server_side: transport.ServerRank) -> bool:
    recorded.verify_here()
    job = read_job(run)
    if server_side.workers != job.workers:
        started = server_side.workers + 1
        raise MissingError(f"{run}: the job has {job.workers} workers and a server, but {started} processes started")
    torch.set_num_threads(job.threads)
    repeatable.settle(job, device.of_server(job))
    server_side.announce(to_yaml(job.model_copy(update={"weights": initial_weights.pinned(job.weights)})))
    stages.say("told")
    stages.say("ready")
    server.train(Built(job), run, server_side)
    return server_side.whole


def _work(rank: int, worker_side: transport.WorkerRank) -> bool:
    text = worker_side.job()
    stages.say("told")
    try:
        recorded.verify_here()  # before any of it is loaded, which reading the job may do
        job = parse(text, "the server's job", checked=True)
        torch.set_num_threads(job.threads)
        repeatable.settle(job, device.of_worker(job))
        built = Built(job)
    except (JobError, MissingError, OwnCodeError) as error:  # the server says it to the user
        worker_side.greet(greeting.write(Greeting(fault=str(error))))
        raise
    serve(built, rank, worker_side)
    return worker_side.whole


def serve(built: Built, rank: int, side: transport.WorkerRank) -> None:
    """Answer the server's tasks, as the worker `rank`, until it says that there are no more."""
    job = built.job
    try:
        sees = task_check.seen(built)  # before the model is turned into the format in which it computes
        vectors = build_vectors(built, followed(job, rank))
        worker = _worker(built, rank, vectors)
        model = _buffer(4 * vectors.parameters, vectors).view(torch.float32)
        frame = _buffer(worker.room(transport.Task(1, 0)), vectors)
    except DracoError as error:  # the server says it to the user
        side.greet(greeting.write(Greeting(fault=str(error))))
        raise
    side.greet(greeting.write(Greeting(greeting.platform_of(job), sees)))
    stages.say("ready")
    if job.local.momentum:
        momenta = worker.momenta.cpu()  # the same memory, unless it is a GPU's
        side.take_momenta(momenta)
        worker.momenta.copy_(momenta)
    for task in side.tasks(model):
        if (room := worker.room(task)) > len(frame):
            frame = _buffer(room, vectors)
        try:
            length = worker.reply(task, model, frame)
        except OwnCodeError as error:
            traceback.print_exception(error.__cause__ or error)
            length = wire.pack_fault(str(error), frame)
            vectors.wait()  # for the model, which the next one overwrites
        if length is not None:
            side.reply(frame, length)


def _buffer(size: int, vectors: StepVectors) -> torch.Tensor:
    """Return zeroed host memory (size,) uint8 that is page-locked where a GPU copies from it or to it.

    Raises:
        MissingError: it cannot be.
    """
    if vectors.device.type == "cpu":
        return torch.zeros(size, dtype=torch.uint8)
    return staging.pinned(1, size)[0]


def _worker(built: Built, rank: int, vectors: StepVectors) -> Worker | ByzantineWorker | PairWorker:
    if built.protocol is not None:
        return build_pair_workers(built, vectors, [rank], time.sleep)[0]
    honest = build_worker(built, rank, vectors)
    if adversary.may_be_byzantine(built.job, rank):
        return ByzantineWorker(built.job, honest, Knowledge(built, vectors), time.sleep)
    return honest


def serve_all(built: Built, run: Path) -> None:
    """Run server and workers in this process, whose settings are as before afterwards.

    Raises:
        MissingError: the job asks for a GPU, and this process sees none.
    """
    with repeatable.settled(built.job, *used_here(built.job)):
        server.train(built, run, Simulation(built))


def used_here(job: Job) -> tuple[torch.device, ...]:
    """Return the devices of workers and server where one process is all of them.

    Raises:
        MissingError: the job asks for a GPU, and this process sees none.
    """
    return device.of_worker(job), device.of_server(job)


class Simulation(transport.Simulated):
    """All workers of a job in this process, which are built when they are first asked for."""

    def __init__(self, built: Built) -> None:
        self._built, self.workers = built, built.job.workers

    def greetings(self, timeout_s: float) -> list[bytes]:
        """Build the workers; return what each says."""
        job, workers = self._built.job, simulated_workers(self._built.again())
        said = greeting.write(Greeting(greeting.platform_of(job)))
        super().__init__([w.reply for w in workers], [said] * job.workers, [w.momenta for w in workers])
        return super().greetings(timeout_s)


def simulated_workers(built: Built) -> Sequence[Worker | ByzantineWorker | PairWorker]:
    """Return all n workers for one process: one model, each partition's vector computed once a step and shared."""
    job, assignment = built.job, built.scheme.assignment
    vectors = build_vectors(built, range(job.workers))
    if built.protocol is not None:
        return build_pair_workers(built, vectors, range(1, job.workers + 1), None)
    shared = adversary.informed(job) or (assignment.sum(0).max() > 1 and not built.encodes_freely)
    remembered = Remembered(vectors, assignment.shape[1]) if shared else None
    first = build_worker(built, 1, vectors, remembered)
    ranks = range(1, job.workers + 1)
    honest = [first._replace(rank=rank, momenta=momenta_of(job, rank, vectors)) for rank in ranks]
    if attack(job) is None:
        return [*honest]
    knowledge = Knowledge(built, vectors, remembered)
    return [
        ByzantineWorker(job, worker, knowledge) if adversary.may_be_byzantine(job, worker.rank) else worker
        for worker in honest
    ]


def _leave_signals_to_the_server() -> None:
    """Where others than Draco have started the ranks, and signal them all: the server ends the run after its step."""
    if spoken.JOINED in os.environ:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def _obey_signals(run: Path) -> None:
    """End resumably on SIGTERM and SIGINT, leave a checkpoint on SIGUSR1, which mpirun forwards to every rank."""

    def ask(signum: int, frame: object) -> None:
        del frame
        (run / ("checkpoint" if signum == signal.SIGUSR1 else "stop")).touch()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, ask)
