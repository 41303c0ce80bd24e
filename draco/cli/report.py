"""The report: `draco report` tells what happened in a run, or in several runs side by side."""

import argparse
import sys
from typing import Any

from draco.cli import arguments, console


def add(commands: Any) -> None:
    """Add `draco report` to the parser."""
    parser = arguments.command(
        commands, "report", report, "show what happened in one run, or in several side by side",
        "Prints a table, and writes a page of HTML with figures.",
    )  # fmt: skip
    parser.add_argument(
        "run", nargs="*", type=arguments.path, metavar="RUN", help="run directories (default: the newest run)"
    )
    arguments.add_runs(parser)
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument(
        "--html", type=arguments.path, metavar="DIR",
        help="where the page and its figures go (default: RUN/report, of several runs a folder beside the first)",
    )  # fmt: skip
    parser.add_argument(
        "--plot",
        type=arguments.path,
        metavar="FILE",
        help="also draw test accuracy, or the loss, by step into this SVG or PNG",
    )
    arguments.add_where(parser)


def report(args: argparse.Namespace) -> int:
    """Run `draco report`."""
    from draco.launch.resume import named_or_newest
    from draco.report import markdown, read, table

    found = [read(run) for run in args.run or [named_or_newest(None, args.runs)]]
    summaries = [each.summary for each in found]
    if args.markdown:
        print(markdown(summaries))
    else:
        console.results(None, soft_wrap=False).print(table(summaries))
    sys.stdout.flush()  # the numbers first: drawing takes a while
    from draco.report import page

    if args.plot:
        page.plot(found, args.plot)
    # A Markdown table is redirected into a file, where the path has no place.
    (console.warn if args.markdown else console.say)(str(page.write(found, args.html)))
    return 0
