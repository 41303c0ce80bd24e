"""Benchmarks: `draco bench` measures kernels, aggregators and training steps (benchmarks/)."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from draco.cli import arguments
from draco.errors import ExitCode, MissingError


def add(commands: Any) -> None:
    """Add `draco bench` to the parser."""
    parser = arguments.command(
        commands, "bench", bench, "measure the kernels against memory copies and against peers",
        "The benchmarks are in the repository: run it in a checkout.",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small vectors, few repetitions: checks that it runs")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="SECTION",
        help="some of kernels, aggregators, wires, receive, exchange, steps, replay, protocols, attackers, simulated, "
        "plain, start, guard, gpu",
    )
    parser.add_argument(
        "--json",
        type=arguments.path,
        default=Path("bench.json"),
        metavar="FILE",
        help="where figures go (default: %(default)s)",
    )


def bench(args: argparse.Namespace) -> int:
    """Run `draco bench`."""
    for pool in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[pool] = "1"  # read when torch and numpy are first imported, which is now
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as in a run
    sys.path.append(str(Path(__file__).parents[2]))  # the checkout, wherever this is called from
    try:
        import benchmarks
    except ModuleNotFoundError:
        raise MissingError("bench: the benchmarks are in the repository: run `make bench` in a checkout") from None
    only = args.only or benchmarks.SECTIONS
    if unknown := [name for name in only if name not in benchmarks.SECTIONS]:
        print(f"bench: --only {unknown[0]} is not one of {', '.join(benchmarks.SECTIONS)}", file=sys.stderr)
        return ExitCode.USAGE
    benchmarks.main(args.json, quick=args.quick, only=only)
    return 0
