"""What one process of a run does: rank 0 is the server, the others are workers; or all of them in one process."""

import signal
from pathlib import Path

import torch

from draco import assembly, data, server, transport, worker
from draco.errors import MissingError
from draco.job import Job, parse


def read_job(run: Path) -> Job:
    """Return the job of a run directory."""
    path = run / "job.yaml"
    return parse(path.read_text(), str(path))


def main(run: Path, simulate: bool) -> None:
    """Do this process's part in the run."""
    job = read_job(run)
    torch.set_num_threads(job.threads)
    root = Path(job.data.root)
    if simulate:
        _stop_on_signals(run)
        serve_all(job, run, root)
        return
    rank, size = transport.rank_and_size()
    if size != job.workers + 1:
        raise MissingError(f"{run}: the job has {job.workers} workers and a server, but MPI started {size} processes")
    if rank == 0:
        _stop_on_signals(run)
        train, test = data.load(job.data.name, root, "train"), data.load(job.data.name, root, "test")
        server.train(job, run, train, test, transport.MpiServer())
    else:
        train = data.load(job.data.name, root, "train")
        worker.serve(job, rank, assembly.build_scheme(job), train, transport.MpiWorker())
    transport.leave()


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
