"""Commands that Draco starts by itself: they are the processes of a run, and what a cluster's head does.

draco rank RUN         one rank of a run, or with --simulate all of it; started by a launcher (launch/plan.py)
draco supervise RUN    the process that stays with a detached run (launch/supervise.py)
draco follow RUN       a run's events as a stream, for an operator elsewhere (launch/follow.py)
draco head check       checks every node of a cluster, as before a run
draco head runs        what the newest run is doing, as JSON
draco head lost RUN WHY  records that a run went with its head
draco head keep        gives runs that lost their supervisor another, for ever (launch/keep.py)

They are not in `draco --help`, and may change without notice. facts.py, sweep.py and round_trip.py of draco/launch are
started on nodes as modules, not from here: they answer before anything large is imported.
"""

import argparse
import contextlib
import json
import signal
from pathlib import Path
from typing import Any

from draco.cli import arguments
from draco.errors import OwnCodeError


def add(commands: Any) -> None:
    """Add the internal commands to the parser."""
    process = arguments.internal(commands, "rank", rank)
    process.add_argument("run", type=Path)
    process.add_argument("--simulate", action="store_true", help="server and workers in this process")
    supervisor = arguments.internal(commands, "supervise", supervise)
    supervisor.add_argument("run", type=Path)
    supervisor.add_argument("--here", action="store_true", help="all ranks on this machine")
    supervisor.add_argument("--lock", type=int, metavar="FD", help="the descriptor of the run's lock, handed over")
    supervisor.add_argument("--again", action="store_true", help="after another one that went without a verdict")
    arguments.internal(commands, "follow", follow).add_argument("run", type=Path)
    on_head = arguments.internal(commands, "head", head)
    on_head.add_argument("what", choices=("check", "runs", "lost", "keep"), help="what to do")
    on_head.add_argument("rest", nargs="*", help="lost: the run, and why")


def rank(args: argparse.Namespace) -> int:
    """Be one rank of a run."""
    from draco.launch.fork_client import run_forked
    from draco.runs import stages

    stages.say("up")
    run_forked(args.run, args.simulate)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # mpirun forwards it to ranks that are still importing; it would kill
    from draco.training import process

    process.main(args.run, args.simulate)
    return 0


def supervise(args: argparse.Namespace) -> int:
    """Stay with a detached run until it has ended."""
    from draco.code import recorded
    from draco.launch import keep, roster, supervise
    from draco.runs import hold
    from draco.runs.directory import read_job

    held = None if args.lock is None else hold.adopt(args.run / hold.SUPERVISOR, args.lock)
    with contextlib.suppress(OwnCodeError):  # a copy that is not whole ends the run below, with a record
        recorded.load_from(recorded.copy(args.run))
    job, nodes = read_job(args.run), None if args.here else roster.read()
    after = keep.end_what_is_left(args.run, nodes) if args.again else None
    supervise.supervise(job, args.run, nodes, after=after, held=held)
    return 0


def follow(args: argparse.Namespace) -> int:
    """Print a run's events until it has ended."""
    from draco.launch import follow, roster

    follow.follow(args.run, roster.read())
    return 0


def head(args: argparse.Namespace) -> int:
    """Do what an operator asks of a cluster's head."""
    from draco.launch import head

    if args.what == "check":
        head.check()
    elif args.what == "runs":
        print(json.dumps(head.runs(Path("runs"))))
    elif args.what == "keep":
        from draco.launch import keep, supervise

        keep.keep(Path("runs"), lambda run, held: supervise.detach(run, here=False, again=True, held=held))
    else:
        run, why = args.rest
        print(head.lost(Path(run), why))
    return 0
