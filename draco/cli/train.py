"""Training: `draco train` runs one job on this machine, or on a cluster's head, and says how it ended."""

import argparse
import contextlib
import importlib
import os
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draco.cli import arguments, console, where
from draco.cli.jobs import here, prepare_data, read_job, require_device
from draco.errors import ExitCode, MissingError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from draco.cluster.backend import Cluster
    from draco.job import Job
    from draco.launch.fork_client import ForkServer
    from draco.launch.resume import Taken
    from draco.launch.roster import Roster
    from draco.runs.directory import Status

IN_THE_BACKGROUND = "it runs in the background: make logs FOLLOW=1, make stop"


def add(commands: Any) -> None:
    """Add `draco train` to the parser."""
    parser = arguments.command(
        commands, "train", train, "train one job",
        "Ctrl-C stops the run after its step, with a checkpoint; a second one kills it. --resume goes on with it.",
    )  # fmt: skip
    parser.add_argument(
        "job", type=arguments.path, metavar="JOB", help="job file, such as jobs/quickstart.yaml; -: from stdin"
    )
    arguments.add_set(parser)
    parser.add_argument("--simulate", action="store_true", help="server and workers in one process: launcher=simulate")
    parser.add_argument("--resume", action="store_true", help="go on with the newest unfinished run of this job")
    parser.add_argument("--new", action="store_true", help="start anew beside an unfinished run of this job")
    arguments.add_runs(parser)
    parser.add_argument(
        "--secret", type=arguments.path, metavar="FILE", help="use this file as the run's secret, to replay it"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and run nothing")
    parser.add_argument("--checked", action="store_true", help=argparse.SUPPRESS)  # by the operator that sends it
    parser.add_argument("--detach", action="store_true", help="return once it has started; it outlives the terminal")
    arguments.add_where(parser)


def train(args: argparse.Namespace) -> int:
    """Run `draco train`."""
    with _early(args) as early:
        return _train(args, early)


@contextlib.contextmanager
def _early(args: argparse.Namespace) -> "Iterator[ForkServer | None]":
    """Yield a fork server that imports torch while the job is checked, as most jobs want it; None where none will do.

    Where none can be had the run's own says so (supervise.py).
    """
    from draco.launch import fork_client
    from draco.launch.environment import launch_environment, process_environment

    if args.dry_run or args.detach or fork_client.NAME in os.environ or where.target(args):
        yield None
        return
    with contextlib.ExitStack() as stack:
        server = None
        with contextlib.suppress(OSError):
            server = fork_client.ForkServer(launch_environment(os.environ, process_environment(threads=1)))
            stack.enter_context(server)
        yield server


def _train(args: argparse.Namespace, early: "ForkServer | None") -> int:
    from draco.job import warnings

    overrides = [*args.set, *(["launcher=simulate"] if args.simulate else [])]
    job = read_job(args.job, overrides, checked=args.checked)
    said = console.messages()
    for warning in [] if args.checked else warnings(job):
        said.print(f"warning: {args.job}: {warning}", style="yellow", highlight=False)
    if cluster := where.target(args):
        return _on_cluster(cluster, args, job, said)
    return _here(args, here(job), said, early)


# On this machine, which may be a cluster's head


def _here(args: argparse.Namespace, job: "Job", said: "Console", early: "ForkServer | None") -> int:
    """Start the job on this machine and watch it, unless it is to run by itself."""
    from draco.launch import not_started, rank_placement, roster, supervise
    from draco.launch.plan import plan
    from draco.launch.progress import Progress

    if job.tensorboard and find_spec("tensorboard") is None:
        raise MissingError(f"{args.job}: tensorboard: the package is missing; make setup EXTRAS=tensorboard")
    require_device(args.job, job.device)
    nodes = None if args.here or job.launcher == "simulate" else roster.read()
    if nodes:
        for warning in rank_placement.warnings(job, nodes, rank_placement.place(nodes, job.workers)):
            said.print(f"warning: {warning}", style="yellow", highlight=False)
    if fault := not_started.shared_memory_fault(job):
        raise MissingError(fault)
    if args.dry_run:
        print(plan(job, args.runs / f"{job.name}-ID", nodes))
        return 0
    if args.detach:
        directory, held = _prepare(args, job, nodes, said)
        supervise.detach(directory, args.here, held=held)
        if not args.checked:  # an operator elsewhere knows what to say
            said.print(IN_THE_BACKGROUND, highlight=False)
        print(directory)
        return 0
    with supervise.fork_server(job, early) as forks:  # it imports torch while the run is prepared
        directory, held = _prepare(args, job, nodes, said)
        processes = "one process" if job.launcher == "simulate" else f"{job.workers} workers and a server"
        said.print(f"{job.name}: {directory}", highlight=False)
        progress = Progress(directory / "events.jsonl", said, f"starting {processes}")
        importlib.import_module("draco.report")  # while its processes start: it is for their end
        outcome = supervise.supervise(job, directory, nodes, progress, held=held, forks=forks)
    return _finish(args, directory, outcome.status, outcome.output)


def _prepare(args: argparse.Namespace, job: "Job", nodes: "Roster | None", said: "Console") -> "Taken":
    """See to the nodes and the data, and return the run directory, taken: a new one, or the one to go on with."""
    from draco import files
    from draco.launch import space
    from draco.launch.resume import new_run, unfinished
    from draco.runs import directory as run_directory

    secret = _secret(args.secret) if args.secret else b""
    taken = unfinished(args.runs, job, resume=args.resume, new=args.new)
    try:
        said.print(space.require(args.runs, [(job, taken and taken.run)]), highlight=False)
        _see_to(args, job, nodes, said)
        if taken is None:
            taken = new_run(args.runs, job)
            if secret:
                files.replace(taken.run / "secret", secret, mode=0o600)
        run_directory.forget_stop(taken.run)
    except BaseException:
        if taken:
            taken.hold.release()
        raise
    return taken


def _see_to(args: argparse.Namespace, job: "Job", nodes: "Roster | None", said: "Console") -> None:
    """Check the nodes, and prepare the data here and there."""
    from draco.launch import preflight, worker_data

    if nodes:
        with said.status(f"checking {len(nodes.nodes)} nodes"):
            preflight.check(nodes)
    if job.data.name is None:
        return
    if not (args.checked and Path(job.data.root, job.data.name).exists()):  # else the ranks look whether it is whole
        prepare_data(job, said)
    if nodes:
        with said.status(f"preparing {job.data.name} on the workers"):
            worker_data.provide(nodes, job)


def _secret(path: Path) -> bytes:
    """Return a run's secret from a file.

    Raises:
        MissingError: it holds something else.
    """
    content = path.read_bytes()
    try:
        whole = len(bytes.fromhex(content.decode())) > 0
    except ValueError:
        whole = False
    if not whole:
        raise MissingError(f"{path}: is no run's secret, which is a line of hexadecimal digits as in runs/*/secret")
    return content


def _finish(args: argparse.Namespace, directory: Path, status: "Status", output: str) -> int:
    if status.state == "succeeded":
        from draco import report

        console.results(None, soft_wrap=False).print(report.table([report.read_summary(directory)]))
        return 0
    if output:
        console.warn(output)
    return ended(args, str(directory), status)


# On a cluster


def _on_cluster(cluster: "Cluster", args: argparse.Namespace, job: "Job", said: "Console") -> int:
    """Start the job on the cluster's head and watch it, unless it is to run by itself."""
    from draco.cluster import backend, lifecycle, remote, state
    from draco.job import to_yaml

    if args.secret:
        raise RefusedError("--secret: not with a cluster; a run's secret never leaves its head")
    workers = len(cluster.workers)
    said.print(f"on {cluster.name} ({cluster.backend}: head and {workers} workers)", highlight=False)
    options = [f"--{word}" for word in ("resume", "new") if getattr(args, word)]
    if args.dry_run:
        return remote.start(cluster, to_yaml(job), [*options, "--dry-run"])[0]
    lifecycle.compare_images(cluster, state.folder(cluster.name))
    code, run = remote.start(cluster, to_yaml(job), options)
    if code:
        return code
    if args.detach:
        said.print(IN_THE_BACKGROUND, highlight=False)
        print(run)
        return 0
    said.print(f"{job.name}: {run}", highlight=False)
    loss = job.on_loss
    if loss.on_demand and (paid := backend.paid(cluster.backend)) and (price := paid.replacing(cluster)):
        said.print(price, highlight=False)
    status = remote.attend(cluster, run, said, _again(args), replace=loss.name == "replace", on_demand=loss.on_demand)
    if status.state == "succeeded":
        return remote.same(cluster, ["report", run])
    return ended(args, run, status)


def ended(args: argparse.Namespace, run: str, status: "Status") -> int:
    """Say how a run ended that did not succeed and how to go on; return the exit code."""
    if status.state == "interrupted":
        console.warn(f"{run}: interrupted at step {status.step}; go on with: {_again(args)}")
        return ExitCode.INTERRUPTED
    console.warn(f"{run}: {status.state} at step {status.step}: {status.message}")
    if status.state != "lost":
        return ExitCode.FAILED
    console.warn(f"go on with: {_repair(args)}{_again(args)}")
    return ExitCode.LOST


def _repair(args: argparse.Namespace) -> str:
    cluster = where.target(args)
    return f"make cluster-up NAME={cluster.name} && " if cluster else ""


def _again(args: argparse.Namespace) -> str:
    """Return the make command that goes on with a run."""
    words = ["make train", f"JOB={shlex.quote(str(args.job))}"]
    words += [f"SET={shlex.quote(' '.join(args.set))}"] if args.set else []
    words += [f"NAME={args.on}"] if args.on else []
    words += ["LOCAL=1"] if args.here else []
    words += ["SIMULATE=1"] if args.simulate else []
    return " ".join([*words, "RESUME=1"])
