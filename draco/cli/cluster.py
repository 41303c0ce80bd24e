"""Clusters: `draco cluster up`, `status`, `down` and the rest. What costs money is in aws.py."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draco.cli import arguments, aws, console
from draco.errors import ExitCode, MissingError, RefusedError

if TYPE_CHECKING:
    from draco.cluster.backend import Cluster, Request

Parser = argparse.ArgumentParser


def add(commands: Any) -> None:
    """Add `draco cluster` to the parser."""
    cluster: Parser = commands.add_parser(
        "cluster", help="bring a cluster up or down, look at it, enter its nodes", allow_abbrev=False,
        description="Bring a cluster up or down, look at it, enter its nodes. A cluster that is up is where train, "
        "eval, report, logs and stop run, unless --here is given. More on one: draco cluster WHAT --help",
    )  # fmt: skip
    does = cluster.add_subparsers(dest="does", required=True, metavar="WHAT", title="what to do")
    _add_up(does)
    status = _named(does, "status", _status, "show nodes, health, image, and what the newest run is doing")
    status.add_argument("--json", action="store_true", help="print it as JSON")
    enter = _named(does, "ssh", _enter, "open a shell on a node")
    enter.add_argument("node", nargs="?", default="head", metavar="NODE", help="head (default), worker-01 ...")
    down = _named(does, "down", _down, "remove nodes, networks and keys; runs and data stay", "dev")
    purge = _named(does, "purge", _purge, "remove the runs and data of a cluster that is down", "dev")
    for parser in (down, purge):
        parser.add_argument("--cluster", metavar="KIND", help="docker, netns or aws, where its state here was lost")
    _add_yes(purge)
    _add_interrupt(does)
    _add_aws(does)


def _add_up(does: Any) -> None:
    up = _named(does, "up", _up, "bring a cluster up, or repair it; changes nothing where all is well", "dev")
    _add_wanted(up, "docker")
    _add_yes(up, " (aws)")
    up.add_argument("--on-demand", action="store_true", help="buy what the spot market cannot replace on demand (aws)")
    up.add_argument("--cpus", type=float, metavar="C", help="processor limit of each node (docker)")
    up.add_argument("--memory-mb", type=int, metavar="M", help="memory limit of each node (docker)")
    up.add_argument(
        "--inventory", type=arguments.path, metavar="FILE", help="Ansible inventory of your own machines (ssh)"
    )


def _add_aws(does: Any) -> None:
    planned = _named(does, "plan", _plan, "show what a cluster on AWS would cost; changes nothing", "dev")
    _add_wanted(planned, "aws")
    planned.add_argument("--json", action="store_true", help="print it as JSON")
    checked = _named(does, "doctor", _doctor, "show what a cluster on AWS needs, and what of it is missing", "dev")
    _add_wanted(checked, "aws")
    longer = _named(does, "extend", _extend, "let a cluster on AWS live longer")
    longer.add_argument("--hours", type=float, required=True, metavar="H", help="how much longer")
    _add_yes(longer)
    left = arguments.command(
        does, "leftovers", _leftovers, "show everything of Draco that AWS holds; remove what was lost track of"
    )
    left.add_argument("--name", help="of this cluster only")
    left.add_argument("--region", help="where to look (default: the shell's)")
    left.add_argument("--remove", action="store_true", help="remove the cluster's instances and what belongs to them")
    _add_yes(left)


def _add_interrupt(does: Any) -> None:
    taken = _named(
        does, "interrupt", _interrupt, "take a worker node away as a cloud does, and tell how the run comes back"
    )
    taken.add_argument("node", metavar="NODE", help="a worker, such as worker-02")
    taken.add_argument(
        "--notice", type=arguments.seconds, default=120.0, metavar="S", help="seconds before its end (120); 0: none"
    )
    taken.add_argument(
        "--wait", type=arguments.seconds, default=180.0, metavar="S", help="seconds for the run afterwards (180)"
    )
    _add_yes(taken, " (aws)")


def _named(
    does: Any, name: str, do: Callable[[argparse.Namespace], int], text: str, default: str | None = None
) -> Parser:
    """Add a command that is about one cluster."""
    parser = arguments.command(does, name, do, text)
    otherwise = default or "the one that is up"
    parser.add_argument("--name", default=default, help=f"the cluster's name (default: {otherwise})")
    return parser


def _add_wanted(parser: Parser, kind: str) -> None:
    """Add what a cluster is to be."""
    parser.add_argument("--cluster", metavar="KIND", help=f"docker, netns, ssh or aws (default: {kind})")
    parser.add_argument("--workers", type=arguments.count, metavar="N", help="worker nodes beside the head (3)")
    parser.add_argument("--image", help="trainer image (draco:latest)")
    arguments.add_set(parser, "settings (aws), such as region=us-west-2")


def _add_yes(parser: Parser, where: str = "") -> None:
    parser.add_argument("--yes", action="store_true", help=f"do not ask{where}")


def warn(args: argparse.Namespace) -> None:
    """Warn of clusters that end soon or cost money for nothing, but not where they are being seen to."""
    from draco.cluster.aws import home

    if getattr(args, "does", None) not in ("up", "down", "purge", "extend"):
        for line in home.warnings():
            console.warn(f"warning: {line}")


def _up(args: argparse.Namespace) -> int:
    from draco.cluster import backend, gpus, lifecycle, state

    said = console.messages()
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
        offer = paid.offer(request, state.path_of(args.name), said)
        if offer.question:
            console.confirm(offer.question, args.yes)
        request = request._replace(agreed=offer.agreed)
    elif args.set:
        raise RefusedError(f"SET={' '.join(args.set)}: is for CLUSTER=aws")
    began = time.monotonic()
    with said.status("starting nodes") as spinner:
        cluster, changed = lifecycle.up(kind, request, spinner.update)
    what = f"{changed} changes" if changed else "nothing changed"
    said.print(
        f"{cluster.name} ({kind}): head and {len(cluster.workers)} workers, ready in {time.monotonic() - began:.0f} s "
        f"({what})", highlight=False,
    )  # fmt: skip
    for line in filter(None, (_room(cluster), gpus.numbers(cluster.details.get("gpus", {})))):
        said.print(line, highlight=False)
    said.print("next: make train JOB=jobs/quickstart.yaml; make cluster-status; make cluster-down", highlight=False)
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
    from draco.cluster import state

    _only_aws(args)
    return aws.plan(_request(args), state.path_of(args.name), as_json=args.json)


def _doctor(args: argparse.Namespace) -> int:
    from draco.cluster import state

    _only_aws(args)
    return aws.doctor(_request(args), state.path_of(args.name))


def _only_aws(args: argparse.Namespace) -> None:
    from draco.cluster import backend

    if args.cluster and not backend.paid(args.cluster):
        raise RefusedError(f"CLUSTER={args.cluster}: costs nothing and needs no account; this is for CLUSTER=aws")


def _leftovers(args: argparse.Namespace) -> int:
    from draco.cluster import state

    return aws.leftovers(args.name, args.region, remove=args.remove, yes=args.yes, ups=state.names())


def _extend(args: argparse.Namespace) -> int:
    from draco.cluster import state

    name = state.chosen(args.name).name
    return aws.extend(name, state.path_of(name), args.hours, yes=args.yes)


def _room(cluster: "Cluster") -> str:
    """Say what the nodes share, where they share one machine."""
    from draco.cluster import docker

    if "cpus" not in cluster.details:
        return ""
    nodes, cpus, cores = len(cluster.nodes), cluster.details["cpus"], cluster.details["cores"]
    over = "; oversubscribed: speeds say nothing about a real cluster" if nodes * cpus > cores else ""
    return docker.occupancy(nodes, cpus, cores) + over


def _status(args: argparse.Namespace) -> int:
    from draco.cluster import gpus, remote, state, status
    from draco.cluster.backend import BACKENDS

    cluster = state.chosen(args.name)
    backend, folder = BACKENDS[cluster.backend], state.folder(cluster.name)
    states = backend.states(cluster, folder)
    run = remote.snapshot(cluster) if states["head"] == "running" else None
    notes = backend.notes(cluster, folder)
    running = [node for node, each in states.items() if each == "running"]
    found = status.gather(
        cluster, states, backend.images(cluster, folder), run, _room(cluster), notes,
        gpus.asked(cluster, folder, running),
    )  # fmt: skip
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    shown = console.results(None)
    shown.print(f"{cluster.name} ({cluster.backend}), up since {cluster.created}  {_room(cluster)}", highlight=False)
    shown.print(status.table(found))
    for line in status.note_lines(notes):
        shown.print(line, highlight=False)
    shown.print(status.run_line(run), highlight=False)
    return 0


def _down(args: argparse.Namespace) -> int:
    from draco.cluster import lifecycle

    said = console.messages()
    with said.status("removing nodes") as spinner:
        took = lifecycle.down(args.name, spinner.update, args.cluster)
    said.print(
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
        if console.answer(f"Remove all runs, checkpoints and data of {args.name}? Type its name: ") != args.name:
            raise RefusedError(f"{args.name}: nothing was removed")
    with console.messages().status("removing") as spinner:
        lifecycle.purge(args.name, spinner.update, args.cluster)
    print(f"{args.name}: its runs and data are gone")
    return 0


def _interrupt(args: argparse.Namespace) -> int:
    from draco.cluster import interrupt, state
    from draco.cluster.backend import named

    cluster = state.chosen(args.name)
    interrupt.refuse(cluster, args.node)
    eviction = named(cluster.backend).eviction(cluster, state.folder(cluster.name), args.node, args.notice)
    said = console.messages()
    for line in eviction.about:
        said.print(line, highlight=False)
    if eviction.question:
        console.confirm(eviction.question, args.yes)
    outcome = interrupt.interrupt(cluster, args.node, eviction, args.wait, said)
    if outcome is None:
        return 0
    shown = console.results(soft_wrap=False)
    shown.print(interrupt.table(outcome.rows), highlight=False)
    return 0 if outcome.outlived else ExitCode.LOST


def _enter(args: argparse.Namespace) -> int:
    from draco.cluster import remote, state

    cluster = state.chosen(args.name)
    known = [node.name for node in cluster.nodes]
    if args.node not in known:
        raise MissingError(f"NODE={args.node}: {cluster.name} has {', '.join(known)}")
    command = remote.enter(cluster, args.node)
    os.execvp(command[0], command)
