"""What one process of a run does: rank 0 is the server, the others are workers; or all of them in one process."""

import signal
from pathlib import Path

import torch

from draco import assembly, data, server, transport, worker
from draco.errors import MissingError
from draco.job import Job, parse, to_yaml
from draco.run_directory import read_job


def main(run: Path, simulate: bool) -> None:
    """Do this process's part in the run. Only the server, or the simulation, looks into the run directory."""
    if simulate:
        _stop_on_signals(run)
        job = read_job(run)
        torch.set_num_threads(job.threads)
        serve_all(job, run, Path(job.data.root))
        return
    rank, size = transport.rank_and_size()
    if rank == 0:
        _stop_on_signals(run)  # before MPI has forwarded any
        _serve(run, size)
    else:
        _work(rank, transport.MpiWorker())
    transport.leave()


def _serve(run: Path, size: int) -> None:
    job = read_job(run)
    if size != job.workers + 1:
        raise MissingError(f"{run}: the job has {job.workers} workers and a server, but MPI started {size} processes")
    torch.set_num_threads(job.threads)
    server_side = transport.MpiServer()
    server_side.announce(to_yaml(job))
    root = Path(job.data.root)
    train, test = data.load(job.data.name, root, "train"), data.load(job.data.name, root, "test")
    server.train(job, run, train, test, server_side)


def _work(rank: int, worker_side: transport.MpiWorker) -> None:
    job = parse(worker_side.job(), "the server's job", checked=True)
    torch.set_num_threads(job.threads)
    train = data.load(job.data.name, Path(job.data.root), "train")
    worker.serve(job, rank, assembly.build_scheme(job), train, worker_side)


def serve_all(job: Job, run: Path, root: Path) -> None:
    """Run server and workers in this process."""
    train, test = data.load(job.data.name, root, "train"), data.load(job.data.name, root, "test")
    workers = worker.simulated_workers(job, assembly.build_scheme(job), train)
    greetings = [worker.fingerprint(job)] * job.workers
    server.train(job, run, train, test, transport.Simulated([w.reply for w in workers], greetings))


def _stop_on_signals(run: Path) -> None:
    """Let the server end resumably on SIGTERM, SIGINT and SIGUSR1, which mpirun forwards to every rank."""

    def stop(signum: int, frame: object) -> None:
        del signum, frame
        (run / "stop").touch()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, stop)
