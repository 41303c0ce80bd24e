"""Training among processes that somebody else has started: `draco join`, which every one of them runs."""

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from draco.cli import arguments, console, train
from draco.cli.jobs import read_job, require_weights
from draco.errors import JobError, MissingError

if TYPE_CHECKING:
    from rich.console import Console

    from draco.job import Job
    from draco.launch.joining import Joined
    from draco.launch.resume import Taken

# How long workers of srun are met that are to end: those that may still have to import torch, and those that are left.
_COME_S, _LEFT_S = 300.0, 20.0


def add(commands: Any) -> None:
    """Add `draco join` to the parser."""
    parser = arguments.command(
        commands, "join", join, "be one of the processes of a job that torchrun or srun has started",
        "Every process runs this same command; rank 0 is the server, and there is one process more than workers. "
        "draco train starts its own.",
    )  # fmt: skip
    parser.add_argument("job", type=arguments.path, metavar="JOB", help="job file, such as jobs/quickstart.yaml")
    arguments.add_set(parser)
    parser.add_argument("--resume", action="store_true", help="go on with the newest unfinished run of this job")
    parser.add_argument("--new", action="store_true", help="start anew beside an unfinished run of this job")
    arguments.add_runs(parser)
    parser.set_defaults(recorded_code=False, checked=False)


def join(args: argparse.Namespace) -> int:
    """Run `draco join`."""
    from draco.launch import joining

    place = joining.joined()
    if place is None:
        raise MissingError(
            "draco join: this process is none of several: start it by torchrun or srun (docs/launchers.md), or let "
            "draco train start them"
        )
    job = read_job(args.job, [*args.set, f"launcher={place.launcher}"])
    if place.size != job.workers + 1:
        raise JobError(
            [
                f"{args.job}: workers: {place.starter} has started {place.size} processes, which are a server and "
                f"{place.size - 1} workers, and the job has {job.workers}: start {job.workers + 1}, or "
                f"--set workers={place.size - 1}"
            ]
        )
    return _work(args, job, place) if place.rank else _serve(args, job, place)


def _serve(args: argparse.Namespace, job: "Job", place: "Joined") -> int:
    """Open the run, be its server to its end, and look after it."""
    from draco.launch import joining, supervise
    from draco.launch.progress import Progress

    said = console.messages()
    try:
        job, taken = _opened(args, job, place, said)
    except BaseException:
        joining.turn_away(place, _COME_S)
        raise
    said.print(f"{job.name}: {taken.run}", highlight=False)
    progress = Progress(taken.run / "events.jsonl", said, f"joined as the server of {job.workers} workers")
    outcome = supervise.supervise(job, taken.run, None, progress, held=taken.hold, joined=place.told)
    if outcome.status.state in ("failed", "lost"):  # perhaps before it had met its workers
        joining.turn_away(place, _LEFT_S)
    return train.finish(taken.run, outcome.status, outcome.output, "the same command, with --resume")


def _opened(args: argparse.Namespace, job: "Job", place: "Joined", said: "Console") -> "tuple[Job, Taken]":
    """Return the job as it is run here and its run, once all that it needs on this machine is there."""
    from draco.job import warnings
    from draco.launch import ready

    own = train.own_code(args, job, said)
    for warning in warnings(job):
        said.print(f"warning: {args.job}: {warning}", style="yellow", highlight=False)
    job = ready.here(job)
    require_weights(job)
    ready.require(args.job, job, place=place)
    return job, ready.take(args.runs, job, own, None, said, resume=args.resume or place.again, new=args.new)


def _work(args: argparse.Namespace, job: "Job", place: "Joined") -> NoReturn:
    """Be a worker.

    torchrun ends all processes when one fails. There this process stands for the worker, as fork_client.py does.
    """
    from pathlib import Path

    from draco.code import gather, recorded, store
    from draco.launch import fork_client
    from draco.launch.environment import gpu_environment, launch_environment, process_environment

    pack = gather.gather(job).pack
    code = recorded.Copy(store.put(pack, Path(store.STORE)), pack.digest).environment if pack.files else {}
    sys.stdout.flush()
    needed = {**process_environment(job.threads), **gpu_environment(job, os.environ), **code, **place.told}
    argv = [sys.executable, "-m", "draco", "rank", str(args.runs / f"{job.name}-joined")]
    made = launch_environment(os.environ, needed)
    if place.launcher != "torchrun":
        os.execve(sys.executable, argv, made)
    for number in (signal.SIGTERM, signal.SIGINT):  # they go to the worker too, which is in the same session
        signal.signal(number, lambda *_: None)
    fork_client.spare(os.waitpid(os.spawnve(os.P_NOWAIT, sys.executable, argv, made), 0)[1])
    raise AssertionError("spare ends the process of a worker")
