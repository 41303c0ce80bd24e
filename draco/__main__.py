"""The command line, nothing else: `python -m draco COMMAND ...`. Heavy imports wait until a command needs them."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from draco.errors import DracoError, JobError, MissingError, RefusedError

if TYPE_CHECKING:
    from rich.console import Console

    from draco.job import Job

INTERRUPTED = 130  # what a shell reports after Ctrl-C
FAILED = 7


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = argparse.ArgumentParser(
        prog="draco", description="Byzantine-resilient distributed training with redundant gradients.",
        epilog="Exit codes: 0 done, 1 bug, 2 bad usage or job, 3 something is missing, 4 refused, 7 the job failed, "
        "130 interrupted and resumable.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train one job")
    _add_job(train)
    train.add_argument("--simulate", action="store_true", help="server and workers in one process: launcher=simulate")
    train.add_argument("--resume", action="store_true", help="go on with the newest unfinished run of this job")
    train.add_argument("--new", action="store_true", help="start anew beside an unfinished run of this job")
    train.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are kept (%(default)s)"
    )
    train.add_argument(
        "--secret", type=Path, metavar="FILE", help="take this file as the run's secret, to replay a run"
    )
    train.add_argument("--dry-run", action="store_true", help="print what would be run, and run nothing")
    train.set_defaults(do=_train)

    validate = commands.add_parser("validate", help="check job files and list every fault")
    validate.add_argument("jobs", nargs="*", type=Path, metavar="JOB")
    validate.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value")
    validate.add_argument("--schema", action="store_true", help="print the JSON Schema of a job instead")
    validate.set_defaults(do=_validate)

    prepare = commands.add_parser("data", help="download or convert the data sets of jobs beforehand, and check them")
    prepare.add_argument("jobs", nargs="+", type=Path, metavar="JOB")
    prepare.set_defaults(do=_data, set=[])

    evaluate = commands.add_parser("eval", help="evaluate a run's checkpoints: top-1, top-5, loss")
    evaluate.add_argument("run", nargs="?", type=Path, metavar="RUN", help="run directory (default: the newest)")
    evaluate.add_argument("--follow", action="store_true", help="wait for new checkpoints until the run ends")
    evaluate.add_argument("--batch-size", type=int, metavar="N", help="samples per batch (default: the job's)")
    evaluate.add_argument("--device", choices=("cpu", "cuda"), help="where to evaluate (default: the job's)")
    evaluate.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are kept")
    evaluate.set_defaults(do=_eval)

    report = commands.add_parser("report", help="what happened in one run, or several runs side by side")
    report.add_argument("run", nargs="+", type=Path, metavar="RUN")
    report.add_argument("--markdown", action="store_true", help="print a Markdown table")
    report.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw test accuracy by step into this SVG or PNG"
    )
    report.set_defaults(do=_report)

    bench = commands.add_parser("bench", help="measure the kernels against memory copies and against peers")
    bench.add_argument("--quick", action="store_true", help="small vectors, few repetitions: checks that it runs")
    bench.add_argument("--json", type=Path, default=Path("bench.json"), metavar="FILE", help="where figures go")
    bench.set_defaults(do=_bench)

    rank = commands.add_parser("rank")  # one process of a run; started by the launcher
    rank.add_argument("run", type=Path)
    rank.add_argument("--simulate", action="store_true")
    rank.set_defaults(do=_rank)
    return parser


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, metavar="JOB", help="job file, such as jobs/quickstart.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value of the job")


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)


def _read_job(path: Path, overrides: Sequence[str]) -> "Job":
    from draco.job import parse

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError([f"{path}: cannot be read ({error}); name a job file such as jobs/quickstart.yaml"]) from error
    return parse(text, str(path), overrides)


def _train(args: argparse.Namespace) -> int:
    from draco.job import to_yaml, warnings

    overrides = [*args.set, *(["launcher=simulate"] if args.simulate else [])]
    job = _read_job(args.job, overrides)
    console = _console()
    for warning in warnings(job):
        console.print(f"warning: {args.job}: {warning}", style="yellow", highlight=False)
    if job.tensorboard and find_spec("tensorboard") is None:
        raise MissingError(f"{args.job}: tensorboard: the package is missing; make setup EXTRAS=tensorboard")
    _require_device(args.job, job.device)
    from draco import run_directory
    from draco.launch import plan, run
    from draco.launch.progress import Progress

    if args.dry_run:
        print(plan(job, args.runs / f"{job.name}-ID"))
        return 0
    if args.resume and args.new:
        raise RefusedError("--resume and --new exclude each other: give one")
    directory = _unfinished(args, job)
    _prepare_data(job, console)
    if directory is None:
        directory = run_directory.create(args.runs, job.name, to_yaml(job))
        if args.secret:
            run_directory.replace(directory / "secret", args.secret.read_bytes(), mode=0o600)
    (directory / "stop").unlink(missing_ok=True)
    processes = "one process" if job.launcher == "simulate" else f"{job.workers} workers and a server"
    console.print(f"{job.name}: {directory}", highlight=False)
    progress = Progress(directory / "events.jsonl", console, f"starting {processes}")
    outcome = run(plan(job, directory), directory, progress)
    return _finish(args, directory, outcome.status, outcome.output)


def _require_device(where: Path, device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise MissingError(f"{where}: device: cuda, but torch sees no GPU; device=cpu, or make setup TORCH=cuda")


def _unfinished(args: argparse.Namespace, job: "Job") -> Path | None:
    """Return the unfinished run to resume, or None to start anew.

    Raises:
        RefusedError: there is one and neither --resume nor --new was given, or it is running, or there is none.
    """
    from draco import run_directory
    from draco.job import to_yaml

    for run in reversed(run_directory.runs(args.runs)):
        status = run_directory.read_status(run)
        if (run / "job.yaml").read_text() != to_yaml(job) or status.state not in run_directory.UNFINISHED:
            continue
        if status.state in ("pending", "running") and run_directory.is_alive(status):
            if args.new:
                continue
            raise RefusedError(f"{run}: this job is running (process {status.pid}); --new starts another beside it")
        if args.resume:
            return run
        if status.step and not args.new:
            raise RefusedError(
                f"{run}: this job {status.state} at step {status.step}; --resume (make: RESUME=1) goes on with it, "
                "--new (make: NEW=1) starts anew"
            )
    if args.resume:
        raise RefusedError(f"{args.runs}: no unfinished run of this very job; leave --resume out to start one")
    return None


def _prepare_data(job: "Job", console: "Console") -> None:
    from draco import data

    root = Path(job.data.root)
    source = Path(job.data.source) if job.data.source else None
    with console.status(f"preparing {job.data.name}"):
        data.prepare(job.data.name, root, source)


def _finish(args: argparse.Namespace, directory: Path, status: "object", output: str) -> int:
    from draco import report, run_directory

    assert isinstance(status, run_directory.Status)
    console = _console()
    if status.state == "succeeded":
        from rich.console import Console

        Console().print(report.table([report.read_summary(directory)]))
        return 0
    if status.state == "interrupted":
        same = [f"JOB={args.job}", *([f"SET={shlex.quote(' '.join(args.set))}"] if args.set else [])]
        again = " ".join(["make train", *same, *(["SIMULATE=1"] if args.simulate else []), "RESUME=1"])
        console.print(
            f"{directory}: interrupted at step {status.step}; go on with: {again}", highlight=False, markup=False
        )
        return INTERRUPTED
    if output:
        print(output, file=sys.stderr)
    print(f"{directory}: {status.state} at step {status.step}: {status.message}", file=sys.stderr)
    return FAILED


def _validate(args: argparse.Namespace) -> int:
    if args.schema:
        import json

        from draco.job import schema

        print(json.dumps(schema(), indent=2))
        return 0
    if not args.jobs:
        raise JobError(["validate: name at least one job file, or --schema"])
    faults: list[str] = []
    for path in args.jobs:
        try:
            _read_job(path, args.set)
        except JobError as error:
            faults += error.faults
        else:
            print(f"{path}: valid")
    if faults:
        raise JobError(faults)
    return 0


def _data(args: argparse.Namespace) -> int:
    from draco import data

    for path in args.jobs:
        job = _read_job(path, [])
        _prepare_data(job, _console())
        data.verify(job.data.name, Path(job.data.root))
        print(f"{job.data.name}: complete and unchanged in {Path(job.data.root) / job.data.name}")
    return 0


def _eval(args: argparse.Namespace) -> int:
    from draco import data, run_directory
    from draco.evaluate import evaluate_run
    from draco.rank import read_job

    if args.run is None:
        found = run_directory.runs(args.runs)
        if not found:
            raise MissingError(f"{args.runs}: there is no run to evaluate; start one with make train JOB=...")
        args.run = found[-1]
    if not (args.run / "state.json").exists():
        raise MissingError(f"{args.run}: is not a run directory (it has no state.json)")
    job = read_job(args.run)
    test = data.load(job.data.name, Path(job.data.root), "test")
    count = 0
    for step, result in evaluate_run(
        args.run, job, test, follow=args.follow, batch_size=args.batch_size, device=args.device
    ):
        count += 1
        print(f"step {step}: top-1 {result.top1:.4f}  top-5 {result.top5:.4f}  loss {result.loss:.4f}", flush=True)
    if not count:
        print(f"{args.run}: every checkpoint is evaluated already; see {args.run / 'evaluations.jsonl'}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from draco import report

    summaries = [report.read_summary(run) for run in args.run]
    if args.plot:
        from draco.plot import accuracy_curves

        accuracy_curves(summaries, args.plot)
    if args.markdown:
        print(report.markdown(summaries))
    else:
        from rich.console import Console

        Console().print(report.table(summaries))
    return 0


def _bench(args: argparse.Namespace) -> int:
    for pool in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[pool] = "1"  # read when torch and numpy are first imported, which is now
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as in a run
    from draco import bench

    bench.main(args.json, quick=args.quick)
    return 0


def _rank(args: argparse.Namespace) -> int:
    from draco import rank

    rank.main(args.run, args.simulate)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = build_parser().parse_args(argv)
    if args.command == "rank":
        return int(args.do(args))  # an error must reach mpi4py as an exception, so that it ends every rank
    try:
        return int(args.do(args))
    except DracoError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
