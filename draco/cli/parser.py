"""The parser of every command: the order of commands in `draco --help`, and the exit codes below them."""

import argparse

from draco import __version__
from draco.cli import bench, cluster, compare, evaluate, export, internal, jobs, join, report, runs, train, verify
from draco.errors import ExitCode

_DESCRIPTION = """\
Byzantine-resilient distributed training with redundant gradients.

Start with:    draco train jobs/quickstart.yaml
More on one:   draco COMMAND --help"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = argparse.ArgumentParser(
        prog="draco",
        description=_DESCRIPTION,
        epilog=exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"draco {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    train.add(commands)
    join.add(commands)
    runs.add(commands)  # logs, stop
    evaluate.add(commands)
    export.add(commands)
    verify.add(commands)
    report.add(commands)
    compare.add(commands)
    jobs.add(commands)  # validate, data
    cluster.add(commands)
    bench.add(commands)
    internal.add(commands)  # not in the help
    return parser


def exit_codes() -> str:
    """Return the table of exit codes as the help shows it."""
    return "\n".join(["exit codes:", *(f"  {code.value:>3}  {code.meaning}" for code in ExitCode)])
