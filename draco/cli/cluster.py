"""The command line's part that has to do with clusters: `draco cluster ...`, and commands that run on a head.

Heavy imports wait until a command needs them, as in __main__.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draco.cli.aws import ask
from draco.errors import MissingError, RefusedError

if TYPE_CHECKING:
    from rich.console import Console

    from draco.cluster.backend import Cluster, Request
    from draco.job import Job
    from draco.runs.directory import Status

INTERRUPTED = 130  # what a shell reports after Ctrl-C
FAILED, LOST = 7, 8
IN_THE_BACKGROUND = "it runs in the background: make logs FOLLOW=1, make stop"
ELSEWHERE = ("eval", "report", "logs", "stop")  # commands that are the same on a head, as they are


def add_cluster(commands: Any) -> None:
    """Add `draco cluster` to the parser of every command."""
    cluster = commands.add_parser("cluster", help="bring a cluster up or down, look at it, enter its nodes")
    does = cluster.add_subparsers(dest="does", required=True, metavar="WHAT", help="what to do")
    up = _named(does, "up", "bring a cluster up, or repair it; changes nothing where nothing is amiss", "dev")
    planned = _named(does, "plan", "what a cluster on AWS would cost; changes nothing", "dev")
    planned.add_argument("--json", action="store_true", help="print it as JSON")
    planned.set_defaults(do=_plan)
    checked = _named(does, "doctor", "what a cluster on AWS needs, and what of it is missing", "dev")
    checked.set_defaults(do=_doctor)
    for parser, default in ((up, "docker"), (planned, "aws"), (checked, "aws")):
        parser.add_argument("--cluster", metavar="KIND", help=f"docker, netns, ssh or aws (default: {default})")
        parser.add_argument("--workers", type=count, metavar="N", help="worker nodes beside the head (3)")
        parser.add_argument("--image", help="trainer image (draco:latest)")
        parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings (aws)")
    up.add_argument("--yes", action="store_true", help="do not ask (aws)")
    up.add_argument("--on-demand", action="store_true", help="buy what the spot market cannot replace on demand (aws)")
    up.add_argument("--cpus", type=float, metavar="C", help="processor limit of each node (docker)")
    up.add_argument("--memory-mb", type=int, metavar="M", help="memory limit of each node (docker)")
    up.add_argument("--inventory", type=Path, metavar="FILE", help="Ansible inventory of your own machines (ssh)")
    up.set_defaults(do=_up)
    status = _named(does, "status", "nodes, health, image, and what the newest run is doing")
    status.add_argument("--json", action="store_true", help="print it as JSON")
    status.set_defaults(do=_status)
    down = _named(does, "down", "remove nodes, networks and keys; runs and data stay", "dev")
    down.set_defaults(do=_down)
    purge = _named(does, "purge", "remove the runs and data of a cluster that is down", "dev")
    for parser in (down, purge):
        parser.add_argument("--cluster", metavar="KIND", help="docker, netns or aws, where its state here was lost")
    purge.add_argument("--yes", action="store_true", help="do not ask")
    purge.set_defaults(do=_purge)
    left = does.add_parser("leftovers", help="everything of Draco that AWS holds; remove what was lost track of")
    left.add_argument("--name", help="of this cluster only")
    left.add_argument("--region", help="where to look (default: the shell's)")
    left.add_argument("--remove", action="store_true", help="remove the cluster's instances and what belongs to them")
    left.set_defaults(do=_leftovers)
    longer = _named(does, "extend", "let a cluster on AWS live longer")
    longer.add_argument("--hours", type=float, required=True, metavar="H", help="how much longer")
    longer.set_defaults(do=_extend)
    for parser in (left, longer):
        parser.add_argument("--yes", action="store_true", help="do not ask")
    taken = _named(does, "interrupt", "take a worker node away as a cloud does, and tell how the run comes back")
    taken.add_argument("node", metavar="NODE")
    taken.add_argument("--notice", type=_seconds, default=120.0, metavar="S", help="before its end (120); 0: none")
    taken.add_argument(
        "--wait", type=_seconds, default=180.0, metavar="S", help="for the run afterwards, at most (180)"
    )
    taken.add_argument("--yes", action="store_true", help="do not ask (aws)")
    taken.set_defaults(do=_interrupt)
    enter = _named(does, "ssh", "open a shell on a node")
    enter.add_argument("node", nargs="?", default="head", metavar="NODE")
    enter.set_defaults(do=_enter)
    for command in does.choices.values():
        command.allow_abbrev = False


def warn(args: argparse.Namespace) -> None:
    """Warn of clusters that end soon or cost money for nothing, but not where they are being seen to."""
    from draco.cluster.aws import home

    if getattr(args, "does", None) not in ("up", "down", "purge", "extend"):
        for line in home.warnings():
            print(f"warning: {line}", file=sys.stderr)


def count(text: str) -> int:
    """Return the whole number, 1 or more, that an option's text is."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text}; it must be a whole number, 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is {text}; it must be a whole number of seconds")
    return float(text)


def _named(does: Any, name: str, text: str, default: str | None = None) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = does.add_parser(name, help=text)
    otherwise = default or "the one that is up"
    parser.add_argument("--name", default=default, help=f"the cluster's name (default: {otherwise})")
    return parser


def target(args: argparse.Namespace) -> "Cluster | None":
    """Return the cluster that a command is to run on, or None for this machine.

    Raises:
        MissingError, RefusedError: no cluster of that name is up, or several are and none was named.
    """
    from draco.cluster import state

    if args.here or (args.on is None and (not state.names() or _is_here(getattr(args, "run", None)))):
        return None
    return state.chosen(args.on)


def _is_here(run: Path | list[Path] | None) -> bool:
    """Say whether a run directory was named that is on this machine."""
    named = run if isinstance(run, list) else [run] if run else []
    return bool(named) and all((path / "state.json").exists() for path in named)


def same(cluster: "Cluster", args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Run the same command on the cluster's head."""
    from draco.cluster import remote

    for word in ("plot", "html"):
        if getattr(args, word, None):
            raise RefusedError(
                f"--{word}: draws on the machine that holds the runs; leave it out, or --here for runs here"
            )
    words = list(arguments)
    if "--on" in words:
        at = words.index("--on")
        del words[at : at + 2]
    print(f"on {cluster.name} ({cluster.backend})", file=sys.stderr)
    return remote.same(cluster, [word for word in words if not word.startswith("--on=")])


def train(cluster: "Cluster", args: argparse.Namespace, job: "Job", console: "Console") -> int:
    """Start the job on the cluster's head and watch it, unless it is to run by itself."""
    from draco.cluster import backend, lifecycle, remote, state
    from draco.job import to_yaml

    if args.secret:
        raise RefusedError("--secret: not with a cluster; a run's secret never leaves its head")
    workers = len(cluster.workers)
    console.print(f"on {cluster.name} ({cluster.backend}: head and {workers} workers)", highlight=False)
    options = [f"--{word}" for word in ("resume", "new") if getattr(args, word)]
    if args.dry_run:
        return remote.start(cluster, to_yaml(job), [*options, "--dry-run"])[0]
    lifecycle.compare_images(cluster, state.folder(cluster.name))
    code, run = remote.start(cluster, to_yaml(job), options)
    if code:
        return code
    if args.detach:
        console.print(IN_THE_BACKGROUND, highlight=False)
        print(run)
        return 0
    console.print(f"{job.name}: {run}", highlight=False)
    loss = job.on_loss
    if loss.on_demand and (paid := backend.paid(cluster.backend)) and (price := paid.replacing(cluster)):
        console.print(price, highlight=False)
    status = remote.attend(
        cluster, run, console, _again(args), replace=loss.name == "replace", on_demand=loss.on_demand
    )
    if status.state == "succeeded":
        return remote.same(cluster, ["report", run])
    return ended(args, run, status)


def ended(args: argparse.Namespace, run: str, status: "Status") -> int:
    """Say how a run ended that did not succeed and how to go on; return the exit code."""
    if status.state == "interrupted":
        print(f"{run}: interrupted at step {status.step}; go on with: {_again(args)}", file=sys.stderr)
        return INTERRUPTED
    print(f"{run}: {status.state} at step {status.step}: {status.message}", file=sys.stderr)
    if status.state != "lost":
        return FAILED
    print(f"go on with: {_repair(args)}{_again(args)}", file=sys.stderr)
    return LOST


def _repair(args: argparse.Namespace) -> str:
    cluster = target(args)
    return f"make cluster-up NAME={cluster.name} && " if cluster else ""


def _again(args: argparse.Namespace) -> str:
    """Return the make command that goes on with a run."""
    words = ["make train", f"JOB={args.job}"]
    words += [f"SET={shlex.quote(' '.join(args.set))}"] if args.set else []
    words += [f"NAME={args.on}"] if args.on else []
    words += ["LOCAL=1"] if args.here else []
    words += ["SIMULATE=1"] if args.simulate else []
    return " ".join([*words, "RESUME=1"])


def prepare_data(cluster: "Cluster", jobs: Sequence["Job"]) -> int:
    """Prepare the data of every job on the cluster's storage."""
    from draco.cluster import remote
    from draco.job import to_yaml

    return max(remote.same(cluster, ["data", "-"], to_yaml(job)) for job in jobs)


def _up(args: argparse.Namespace) -> int:
    import time

    from draco.cluster import backend, lifecycle, state

    console = _console()
    before = state.load(args.name)
    kind = args.cluster or (before.backend if before else "docker")
    known = before.details if before else {}
    request = _request(args)._replace(
        cpus=args.cpus,
        memory_mb=args.memory_mb or known.get("memory_mb"),
        inventory=args.inventory or (Path(known["inventory"]) if "inventory" in known else None),
        on_demand=args.on_demand,
    )
    if paid := backend.paid(kind):
        offer = paid.offer(request, state.path_of(args.name), console)
        if offer.question:
            ask(offer.question, args.yes)
        request = request._replace(agreed=offer.agreed)
    elif args.set:
        raise RefusedError(f"SET={' '.join(args.set)}: is for CLUSTER=aws")
    began = time.monotonic()
    with console.status("starting nodes") as spinner:
        cluster, changed = lifecycle.up(kind, request, spinner.update)
    what = f"{changed} changes" if changed else "nothing changed"
    console.print(
        f"{cluster.name} ({kind}): head and {len(cluster.workers)} workers, ready in {time.monotonic() - began:.0f} s "
        f"({what})", highlight=False,
    )  # fmt: skip
    if room := _room(cluster):
        console.print(room, highlight=False)
    console.print("next: make train JOB=jobs/quickstart.yaml; make cluster-status; make cluster-down", highlight=False)
    return 0


def _request(args: argparse.Namespace) -> "Request":
    """Return what was asked for; a second call need not repeat what the first was told."""
    from draco.cluster import state
    from draco.cluster.backend import Request

    before = state.load(args.name)
    return Request(
        args.name,
        args.workers or (len(before.workers) if before else 3),
        args.image or (before.details.get("image") if before else None) or "draco:latest",
        settings=tuple(args.set),
    )


def _plan(args: argparse.Namespace) -> int:
    from draco.cli import aws as money
    from draco.cluster import state

    _only_aws(args)
    return money.plan(_request(args), state.path_of(args.name), as_json=args.json)


def _doctor(args: argparse.Namespace) -> int:
    from draco.cli import aws as money
    from draco.cluster import state

    _only_aws(args)
    return money.doctor(_request(args), state.path_of(args.name))


def _only_aws(args: argparse.Namespace) -> None:
    from draco.cluster import backend

    if args.cluster and not backend.paid(args.cluster):
        raise RefusedError(f"CLUSTER={args.cluster}: costs nothing and needs no account; this is for CLUSTER=aws")


def _leftovers(args: argparse.Namespace) -> int:
    from draco.cli import aws as money
    from draco.cluster import state

    return money.leftovers(args.name, args.region, remove=args.remove, yes=args.yes, ups=state.names())


def _extend(args: argparse.Namespace) -> int:
    from draco.cli import aws as money
    from draco.cluster import state

    name = state.chosen(args.name).name
    return money.extend(name, state.path_of(name), args.hours, yes=args.yes)


def _room(cluster: "Cluster") -> str:
    """Say what the nodes share, where they share one machine."""
    from draco.cluster import docker

    if "cpus" not in cluster.details:
        return ""
    nodes, cpus, cores = len(cluster.nodes), cluster.details["cpus"], cluster.details["cores"]
    over = "; oversubscribed: speeds say nothing about a real cluster" if nodes * cpus > cores else ""
    return docker.occupancy(nodes, cpus, cores) + over


def _status(args: argparse.Namespace) -> int:
    from draco.cluster import remote, state, status
    from draco.cluster.backend import BACKENDS

    cluster = state.chosen(args.name)
    backend, folder = BACKENDS[cluster.backend], state.folder(cluster.name)
    states = backend.states(cluster, folder)
    run = remote.snapshot(cluster) if states["head"] == "running" else None
    notes = backend.notes(cluster, folder)
    found = status.gather(cluster, states, backend.images(cluster, folder), run, _room(cluster), notes)
    if args.json:
        import json

        print(json.dumps(found, indent=1))
        return 0
    from rich.console import Console

    console = Console(soft_wrap=True)
    console.print(f"{cluster.name} ({cluster.backend}), up since {cluster.created}  {_room(cluster)}", highlight=False)
    console.print(status.table(found))
    for line in status.note_lines(notes):
        console.print(line, highlight=False)
    console.print(status.run_line(run), highlight=False)
    return 0


def _down(args: argparse.Namespace) -> int:
    from draco.cluster import lifecycle

    console = _console()
    with console.status("removing nodes") as spinner:
        took = lifecycle.down(args.name, spinner.update, args.cluster)
    console.print(
        f"{args.name}: down in {took:.0f} s; runs and data are kept: make cluster-up NAME={args.name} finds them "
        f"again, make cluster-purge NAME={args.name} removes them", highlight=False,
    )  # fmt: skip
    return 0


def _purge(args: argparse.Namespace) -> int:
    from draco.cluster import lifecycle

    lifecycle.may_purge(args.name, args.cluster)
    if not args.yes:
        if not sys.stdin.isatty():
            raise RefusedError(f"{args.name}: this removes all its runs and checkpoints; YES=1 says that it may")
        try:
            answer = input(f"Remove all runs, checkpoints and data of {args.name}? Type its name: ")
        except EOFError:
            answer = ""
        if answer != args.name:
            raise RefusedError(f"{args.name}: nothing was removed")
    with _console().status("removing") as spinner:
        lifecycle.purge(args.name, spinner.update, args.cluster)
    print(f"{args.name}: its runs and data are gone")
    return 0


def _interrupt(args: argparse.Namespace) -> int:
    from draco.cluster import interrupt, state
    from draco.cluster.backend import named

    cluster = state.chosen(args.name)
    interrupt.refuse(cluster, args.node)
    eviction = named(cluster.backend).eviction(cluster, state.folder(cluster.name), args.node, args.notice)
    console = _console()
    for line in eviction.about:
        console.print(line, highlight=False)
    if eviction.question:
        ask(eviction.question, args.yes)
    try:
        outcome = interrupt.interrupt(cluster, args.node, eviction, args.wait, console)
    except KeyboardInterrupt:
        return INTERRUPTED
    if outcome is None:
        return 0
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(interrupt.table(outcome.rows), highlight=False)
    return 0 if outcome.outlived else LOST


def _enter(args: argparse.Namespace) -> int:
    import os

    from draco.cluster import remote, state

    cluster = state.chosen(args.name)
    known = [node.name for node in cluster.nodes]
    if args.node not in known:
        raise MissingError(f"NODE={args.node}: {cluster.name} has {', '.join(known)}")
    command = remote.enter(cluster, args.node)
    os.execvp(command[0], command)


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)
