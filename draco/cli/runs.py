"""A run that goes on or has ended: `draco logs` shows what it printed, `draco stop` ends it."""

import argparse
from typing import Any

from draco.cli import arguments, console


def add(commands: Any) -> None:
    """Add `draco logs` and `draco stop` to the parser."""
    shows = arguments.command(commands, "logs", logs, "show what a run's processes printed")
    arguments.add_run(shows)
    shows.add_argument("--rank", type=int, metavar="N", help="only this MPI rank; 0 is the server")
    shows.add_argument("--follow", action="store_true", help="go on until the run ends")
    stops = arguments.command(
        commands, "stop", stop, "stop a run after its step, with a checkpoint",
        "`draco train JOB --resume` goes on with it.",
    )  # fmt: skip
    arguments.add_run(stops)
    stops.add_argument("--kill", action="store_true", help="end its processes now, without a checkpoint")
    stops.add_argument(
        "--lost", action="store_true", help="record that it went with its machine, which is not seen from here"
    )
    stops.add_argument("--no-wait", action="store_true", help="do not wait until it has ended")


def logs(args: argparse.Namespace) -> int:
    """Run `draco logs`."""
    from draco.launch import logs
    from draco.launch.resume import named_or_newest

    run = named_or_newest(args.run, args.runs)
    if not logs.show(run, args.rank, args.follow):
        who = "its processes" if args.rank is None else f"rank {args.rank}"
        console.warn(f"{run}: {who} printed nothing")
    return 0


def stop(args: argparse.Namespace) -> int:
    """Run `draco stop`."""
    from draco.launch import roster, settle, stop
    from draco.launch.resume import named_or_newest

    run = named_or_newest(args.run, args.runs)
    if not args.lost:
        stop.stop(run, kill=args.kill)
    if args.lost or not args.no_wait:
        status = settle.give_up(run) if args.lost else stop.wait(run, roster.read())
        console.say(f"{run}: {status.state} at step {status.step}{': ' + status.message if status.message else ''}")
    return 0
