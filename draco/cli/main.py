"""The entry point: parses the arguments, runs one command and turns what happened into an exit code."""

import sys
from collections.abc import Sequence

from draco import extras, files
from draco.cli import cluster, streams, where
from draco.cli.parser import build_parser
from draco.errors import DracoError, ExitCode
from draco.plain import lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    An error of another kind than DracoError is a bug and shows its traceback, but for those of files (draco/files.py)
    and of the standard streams (streams.py). Ctrl-C that nobody handles further down (draco/launch/interrupts.py says
    who does) ended a command that only watched or waited.
    """
    streams.make_ready()
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
    except SystemExit:  # of the parser, which has said what it had to say
        if failed := streams.finish():
            raise SystemExit(failed) from None
        raise
    return streams.finish() or code


def _run(words: Sequence[str]) -> int:
    if words[:1] == ["rank"]:  # its launcher reads the traceback
        args = build_parser().parse_args(words)
        return int(args.do(args))
    try:
        args = build_parser().parse_args(words)
        cluster.warn(args)
        if args.command in where.SAME_ON_A_HEAD and (found := where.target(args)):
            return where.same(found, args, words)
        return int(args.do(args))
    except DracoError as error:
        return _end(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if not (needs := extras.missing(error)):
            raise
        return _end(f"draco {words[0]}: {needs}", ExitCode.MISSING)
    except OSError as error:
        if code := streams.fault(error):
            return code
        if not (why := files.fault(error)):
            raise
        return _end(why, ExitCode.MISSING)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def _end(why: str, code: ExitCode) -> int:
    """Say why a command ends."""
    try:
        print(lines(why), file=sys.stderr, flush=True)
    except OSError as error:
        streams.fault(error)
    return code
