"""The entry point: parses the arguments, runs one command and turns what happened into an exit code."""

import os
import sys
from collections.abc import Sequence

from draco import files
from draco.cli import cluster, where
from draco.cli.parser import build_parser
from draco.errors import DracoError, ExitCode


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    An error of another kind than DracoError is a bug and shows its traceback. Ctrl-C that nobody handles further down
    (draco/launch/interrupts.py says who does) ended a command that only watched or waited.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(arguments)
    if args.command == "rank":  # its launcher reads the traceback
        return int(args.do(args))
    cluster.warn(args)
    try:
        if args.command in where.SAME_ON_A_HEAD and (found := where.target(args)):
            return where.same(found, args, arguments)
        return int(args.do(args))
    except DracoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if not (error.filename and error.errno in files.NOT_WRITABLE):
            raise
        print(f"{error.filename}: cannot be written or read: {os.strerror(error.errno)}", file=sys.stderr)
        return ExitCode.FAILED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
