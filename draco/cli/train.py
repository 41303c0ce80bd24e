"""Training: `draco train` runs one job on this machine, or on a cluster's head, and says how it ended."""

import argparse
import contextlib
import importlib
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draco.cli import arguments, console, where
from draco.cli.jobs import read_job, require_weights
from draco.errors import ExitCode, OwnCodeError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from draco.cluster.backend import Cluster
    from draco.code.gather import Gathered
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
    parser.add_argument(
        "--recorded-code", action="store_true", help="with --resume: go on with the run's own copy of the job's code"
    )
    arguments.add_runs(parser)
    parser.add_argument(
        "--secret", type=arguments.path, metavar="FILE", help="use this file as the run's secret, to replay it"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and run nothing")
    parser.add_argument("--checked", action="store_true", help=argparse.SUPPRESS)  # by the operator that sends it
    parser.add_argument("--code", metavar="DIGEST", help=argparse.SUPPRESS)  # of the own code that it has sent before
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
    from draco.launch import joining

    if place := joining.of_several():
        raise RefusedError(
            f"draco train: this is process {place.rank} of {place.size} that {place.starter} has started, and each "
            "would begin a run of its own: let them run draco join, or start draco train once"
        )
    if args.recorded_code and not args.resume:
        raise RefusedError("--recorded-code: only with --resume; it goes on with the code that a run has recorded")
    _load_recorded(args)
    overrides = [*args.set, *(["launcher=simulate"] if args.simulate else [])]
    job = read_job(args.job, overrides, checked=args.checked)
    said = console.messages()
    own = own_code(args, job, said)
    for warning in [] if args.checked else warnings(job):
        said.print(f"warning: {args.job}: {warning}", style="yellow", highlight=False)
    if cluster := where.target(args):
        return _on_cluster(cluster, args, job, own, said)
    from draco.launch import ready

    return _here(args, ready.here(job), own, said, early)


def _load_recorded(args: argparse.Namespace) -> None:
    """Let own code be loaded from where an operator has put it, or that of a run's job.yaml from the run."""
    from draco.code.recorded import Copy, copy, load_from
    from draco.code.store import STORE

    found = Copy(STORE / args.code, args.code) if args.code else None
    if args.job.name == "job.yaml" and (args.job.parent / "state.json").exists():
        found = copy(args.job.parent)
    load_from(found)


def own_code(args: argparse.Namespace, job: "Job", said: "Console") -> "Gathered":
    """Return the job's own code as it is now.

    Where a run goes on with what it has recorded, the files of now serve to read the job, if they are there at all.
    """
    from draco.code import gather

    if args.recorded_code:
        with contextlib.suppress(OwnCodeError):
            return gather.Gathered(gather.gather(job).pack)
        return gather.Gathered()
    found = gather.gather(job)
    for warning in [] if args.checked else gather.said(found):
        said.print(f"warning: {warning}", style="yellow", highlight=False)
    return found


# On this machine, which may be a cluster's head


def _here(args: argparse.Namespace, job: "Job", own: "Gathered", said: "Console", early: "ForkServer | None") -> int:
    """Start the job on this machine and watch it, unless it is to run by itself."""
    from draco.code import gather, recorded
    from draco.launch import plan as launching
    from draco.launch import ready, roster, supervise, worker_code
    from draco.launch.progress import Progress

    require_weights(job)
    launcher = launching.of(job)
    nodes = roster.read() if launcher.clusters and not args.here else None
    if not nodes:
        gather.check_installed(own.found)
    if nodes:
        ready.warn_of_nodes(job, nodes, said)
    ready.require(args.job, job, nodes)
    if args.dry_run:
        run = args.runs / f"{job.name}-ID"
        code = recorded.Copy(worker_code.folder(own.pack, run, nodes), own.pack.digest) if own.pack.files else None
        print(launching.plan(job, run, nodes, code=code))
        return 0
    ready.require_allocation(job, args.runs, said)
    if args.detach:
        directory, held = _prepare(args, job, own, nodes, said)
        given = launcher.allocation(job).environment if launcher.allocation else None
        supervise.detach(directory, args.here, held=held, given=given)
        if not args.checked:  # an operator elsewhere knows what to say
            said.print(IN_THE_BACKGROUND, highlight=False)
        print(directory)
        return 0
    with supervise.fork_server(job, early) as forks:  # it imports torch while the run is prepared
        directory, held = _prepare(args, job, own, nodes, said)
        processes = "one process" if not launcher.starter else f"{job.workers} workers and a server"
        said.print(f"{job.name}: {directory}", highlight=False)
        progress = Progress(directory / "events.jsonl", said, f"starting {processes}")
        importlib.import_module("draco.report")  # while its processes start: it is for their end
        outcome = supervise.supervise(job, directory, nodes, progress, held=held, forks=forks)
    return finish(directory, outcome.status, outcome.output, _again(args))


def _prepare(args: argparse.Namespace, job: "Job", own: "Gathered", nodes: "Roster | None", said: "Console") -> "Taken":
    """See to the nodes, the data and the code, and return the run directory, taken: a new one, or that to go on with.

    Raises:
        RefusedError: the job's own code is not what the run has recorded.
    """
    from draco.launch import ready

    return ready.take(
        args.runs, job, own, nodes, said, resume=args.resume, new=args.new, as_recorded=args.recorded_code,
        secret=args.secret, checked=args.checked,
    )  # fmt: skip


def finish(directory: Path, status: "Status", output: str, again: str) -> int:
    """Show what a run that has succeeded came to, or say how it ended; return the exit code."""
    if status.state == "succeeded":
        from draco import report

        console.results(None, soft_wrap=False).print(report.table([report.read_summary(directory)]))
        return 0
    if output:
        console.warn(output)
    return tell_end(str(directory), status, again)


# On a cluster


def _on_cluster(cluster: "Cluster", args: argparse.Namespace, job: "Job", own: "Gathered", said: "Console") -> int:
    """Start the job on the cluster's head and watch it, unless it is to run by itself."""
    from draco.cluster import backend, lifecycle, remote, state
    from draco.job import to_yaml

    if args.secret:
        raise RefusedError("--secret: not with a cluster; a run's secret never leaves its head")
    workers = len(cluster.workers)
    said.print(f"on {cluster.name} ({cluster.backend}: head and {workers} workers)", highlight=False)
    options = [f"--{word}" for word in ("resume", "new") if getattr(args, word)]
    options += ["--recorded-code"] if args.recorded_code else []
    if own.pack.files:
        options += remote.send_code(cluster, own.pack)
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
    """Say how a run ended that did not succeed, and which make command goes on with it; return the exit code."""
    cluster = where.target(args)
    return tell_end(run, status, _again(args), f"make cluster-up NAME={cluster.name} && " if cluster else "")


def tell_end(run: str, status: "Status", again: str, repair: str = "") -> int:
    """Say how a run ended that did not succeed and how to go on, after a loss with `repair`; return the exit code."""
    if status.state == "interrupted":
        console.warn(f"{run}: interrupted at step {status.step}; go on with: {again}")
        return ExitCode.INTERRUPTED
    console.warn(f"{run}: {status.state} at step {status.step}: {status.message}")
    if status.state != "lost":
        return ExitCode.FAILED
    console.warn(f"go on with: {repair}{again}")
    return ExitCode.LOST


def _again(args: argparse.Namespace) -> str:
    """Return the make command that goes on with a run."""
    words = ["make train", f"JOB={shlex.quote(str(args.job))}"]
    words += [f"SET={shlex.quote(' '.join(args.set))}"] if args.set else []
    words += [f"NAME={args.on}"] if args.on else []
    words += ["LOCAL=1"] if args.here else []
    words += ["SIMULATE=1"] if args.simulate else []
    words += ["RECORDED=1"] if args.recorded_code else []
    return " ".join([*words, "RESUME=1"])
