"""The command line, nothing else: `python -m draco COMMAND ...`. Heavy imports wait until a command needs them."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from draco.cli import cluster as command_line
from draco.errors import DracoError, JobError, MissingError, TrainingError

if TYPE_CHECKING:
    from rich.console import Console

    from draco.job import Job
    from draco.runs.directory import Status


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = argparse.ArgumentParser(
        prog="draco", description="Byzantine-resilient distributed training with redundant gradients.",
        epilog="Exit codes: 0 done, 1 bug, 2 bad usage or job, 3 something is missing, 4 refused, 6 a node of the "
        "cluster is not as it must be, 7 the job failed, 8 nodes or processes were lost (resumable), 130 interrupted "
        "(resumable).",
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
    train.add_argument("--checked", action="store_true", help=argparse.SUPPRESS)  # by the operator that sends it
    train.add_argument("--detach", action="store_true", help="return once it has started; it outlives the terminal")
    _add_where(train)
    train.set_defaults(do=_train)

    validate = commands.add_parser("validate", help="check job files and list every fault")
    validate.add_argument("jobs", nargs="*", type=Path, metavar="JOB")
    validate.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value")
    validate.add_argument("--schema", action="store_true", help="print the JSON Schema of a job instead")
    validate.set_defaults(do=_validate)

    prepare = commands.add_parser("data", help="download or convert the data sets of jobs beforehand, and check them")
    prepare.add_argument("jobs", nargs="+", type=Path, metavar="JOB")
    _add_where(prepare)
    prepare.set_defaults(do=_data, set=[])

    evaluate = commands.add_parser("eval", help="evaluate a run's checkpoints: top-1, top-5, loss")
    evaluate.add_argument("run", nargs="?", type=Path, metavar="RUN", help="run directory (default: the newest)")
    evaluate.add_argument("--follow", action="store_true", help="wait for new checkpoints until the run ends")
    evaluate.add_argument("--batch-size", type=int, metavar="N", help="samples per batch (default: the job's)")
    evaluate.add_argument("--device", choices=("cpu", "cuda"), help="where to evaluate (default: the job's)")
    evaluate.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are kept")
    _add_where(evaluate)
    evaluate.set_defaults(do=_eval)

    report = commands.add_parser("report", help="what happened in one run, or several runs side by side")
    report.add_argument("run", nargs="+", type=Path, metavar="RUN")
    report.add_argument("--markdown", action="store_true", help="print a Markdown table")
    report.add_argument(
        "--html", type=Path, metavar="DIR",
        help="where the page and its figures go (default: RUN/report, of several runs a folder beside the first)",
    )  # fmt: skip
    report.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw test accuracy by step into this SVG or PNG"
    )
    _add_where(report)
    report.set_defaults(do=_report)

    compare = commands.add_parser("compare", help="train every combination of some values of a job; tables and plots")
    compare.add_argument("grid", type=Path, metavar="GRID", help="grid file, such as jobs/compare/robustness.yaml")
    compare.add_argument(
        "--processes", type=command_line.count, metavar="N", help="cells at a time (default: what fits)"
    )
    compare.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are kept")
    compare.add_argument("--dry-run", action="store_true", help="list the cells, and run nothing")
    compare.add_argument("--new", action="store_true", help="run cells anew whose job has changed since they were run")
    compare.set_defaults(do=_compare)

    logs = commands.add_parser("logs", help="what a run's processes printed")
    _add_run(logs)
    logs.add_argument("--rank", type=int, metavar="N", help="only this MPI rank; 0 is the server")
    logs.add_argument("--follow", action="store_true", help="go on until the run ends")
    logs.set_defaults(do=_logs)

    stop = commands.add_parser("stop", help="stop a run after its step, with a checkpoint")
    _add_run(stop)
    stop.add_argument("--kill", action="store_true", help="end its processes now")
    stop.add_argument("--no-wait", action="store_true", help="do not wait until it has ended")
    stop.set_defaults(do=_stop)

    command_line.add_cluster(commands)

    bench = commands.add_parser("bench", help="measure the kernels against memory copies and against peers")
    bench.add_argument("--quick", action="store_true", help="small vectors, few repetitions: checks that it runs")
    bench.add_argument("--only", nargs="+", metavar="SECTION", help="kernels, aggregators, wires, receive, steps")
    bench.add_argument("--json", type=Path, default=Path("bench.json"), metavar="FILE", help="where figures go")
    bench.set_defaults(do=_bench)

    rank = commands.add_parser("rank")  # one process of a run; started by the launcher
    rank.add_argument("run", type=Path)
    rank.add_argument("--simulate", action="store_true")
    rank.set_defaults(do=_rank)

    supervise = commands.add_parser("supervise")  # the process that stays with a detached run
    supervise.add_argument("run", type=Path)
    supervise.add_argument("--here", action="store_true", help="all ranks on this machine")
    supervise.add_argument("--again", action="store_true", help="after another one that went without a verdict")
    supervise.set_defaults(do=_supervise)

    follow = commands.add_parser("follow")  # a run's events as a stream, for an operator elsewhere
    follow.add_argument("run", type=Path)
    follow.set_defaults(do=_follow)

    head = commands.add_parser("head")  # what a head does for its operator
    head.add_argument("what", choices=("check", "runs", "lost", "keep"), help="what to do")
    head.add_argument("rest", nargs="*", help="lost: the run, and why")
    head.set_defaults(do=_head)
    for command in commands.choices.values():
        command.allow_abbrev = False  # a cluster's head is passed the very words
    return parser


def _add_where(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--on", metavar="NAME", help="the cluster to use (default: the one that is up, if any)")
    where.add_argument("--here", action="store_true", help="this machine, though a cluster is up")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="run directory (default: the newest)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are kept")
    _add_where(parser)


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, metavar="JOB", help="job file, such as jobs/quickstart.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value of the job")


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)


def _read_job(path: Path, overrides: Sequence[str], *, checked: bool = False) -> "Job":
    from draco.job import parse

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError([f"{path}: cannot be read ({error}); name a job file such as jobs/quickstart.yaml"]) from error
    return parse(text, str(path), overrides, checked=checked)


def _train(args: argparse.Namespace) -> int:
    from draco.job import to_yaml, warnings

    overrides = [*args.set, *(["launcher=simulate"] if args.simulate else [])]
    job = _read_job(args.job, overrides, checked=args.checked)
    console = _console()
    for warning in [] if args.checked else warnings(job):
        console.print(f"warning: {args.job}: {warning}", style="yellow", highlight=False)
    if cluster := command_line.target(args):
        return command_line.train(cluster, args, job, console)
    if job.tensorboard and find_spec("tensorboard") is None:
        raise MissingError(f"{args.job}: tensorboard: the package is missing; make setup EXTRAS=tensorboard")
    _require_device(args.job, job.device)
    from draco import files
    from draco.launch import preflight, rank_placement, roster, supervise, worker_data
    from draco.launch.plan import plan
    from draco.launch.progress import Progress
    from draco.launch.resume import unfinished
    from draco.runs import directory as run_directory

    nodes = None if args.here or job.launcher == "simulate" else roster.read()
    if nodes:
        for warning in rank_placement.warnings(job, nodes, rank_placement.place(nodes, job.workers)):
            console.print(f"warning: {warning}", style="yellow", highlight=False)
    if args.dry_run:
        print(plan(job, args.runs / f"{job.name}-ID", nodes))
        return 0
    directory = unfinished(args.runs, job, resume=args.resume, new=args.new)
    if nodes:
        with console.status(f"checking {len(nodes.nodes)} nodes"):
            preflight.check(nodes)
    if not (args.checked and Path(job.data.root, job.data.name).exists()):  # else the ranks look whether it is whole
        _prepare_data(job, console)
    if nodes:
        with console.status(f"preparing {job.data.name} on the workers"):
            worker_data.provide(nodes, job)
    if directory is None:
        directory = run_directory.create(args.runs, job.name, to_yaml(job))
        if args.secret:
            files.replace(directory / "secret", args.secret.read_bytes(), mode=0o600)
    run_directory.forget_stop(directory)
    if args.detach:
        supervise.detach(directory, args.here)
        if not args.checked:  # an operator elsewhere knows what to say
            console.print(command_line.IN_THE_BACKGROUND, highlight=False)
        print(directory)
        return 0
    processes = "one process" if job.launcher == "simulate" else f"{job.workers} workers and a server"
    console.print(f"{job.name}: {directory}", highlight=False)
    progress = Progress(directory / "events.jsonl", console, f"starting {processes}")
    outcome = supervise.supervise(job, directory, nodes, progress)
    return _finish(args, directory, outcome.status, outcome.output)


def _require_device(where: Path, device: str) -> None:
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise MissingError(f"{where}: device: cuda, but torch sees no GPU; device=cpu, or make setup TORCH=cuda")


def _prepare_data(job: "Job", console: "Console") -> None:
    from draco import data

    root = Path(job.data.root)
    source = Path(job.data.source) if job.data.source else None
    with console.status(f"preparing {job.data.name}"):
        data.prepare(job.data.name, root, source)


def _finish(args: argparse.Namespace, directory: Path, status: "Status", output: str) -> int:
    if status.state == "succeeded":
        from rich.console import Console

        from draco import report

        Console().print(report.table([report.read_summary(directory)]))
        return 0
    if output:
        print(output, file=sys.stderr)
    return command_line.ended(args, str(directory), status)


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

    if cluster := command_line.target(args):
        return command_line.prepare_data(cluster, [_read_job(path, []) for path in args.jobs])
    for path in args.jobs:
        job = _read_job(path, [])
        _prepare_data(job, _console())
        data.verify(job.data.name, Path(job.data.root))
        print(f"{job.data.name}: complete and unchanged in {Path(job.data.root) / job.data.name}")
    return 0


def _eval(args: argparse.Namespace) -> int:
    from draco import data
    from draco.launch.resume import named_or_newest
    from draco.runs.directory import read_job
    from draco.training.evaluate import evaluate_run

    args.run = named_or_newest(args.run, args.runs)
    job = read_job(args.run)
    test = data.load(job.data.name, Path(job.data.root), "test")
    count = 0
    refused: set[int] = set()

    def refuse(step: int, why: str) -> None:
        refused.add(step)
        print(f"not evaluated: {why}", file=sys.stderr, flush=True)

    for step, result in evaluate_run(
        args.run, job, test, follow=args.follow, batch_size=args.batch_size, device=args.device, refuse=refuse
    ):
        count += 1
        refused.discard(step)
        print(f"step {step}: top-1 {result.top1:.4f}  top-5 {result.top5:.4f}  loss {result.loss:.4f}", flush=True)
    if refused:
        return TrainingError.exit_code
    if not count:
        print(f"{args.run}: every checkpoint is evaluated already; see {args.run / 'evaluations.jsonl'}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from draco import report

    lefts = [report.read(run) for run in args.run]
    summaries = [left.summary for left in lefts]
    if args.markdown:
        print(report.markdown(summaries))
    else:
        from rich.console import Console

        Console().print(report.table(summaries))
    sys.stdout.flush()  # the numbers first: drawing takes a while
    from draco.report import page

    if args.plot:
        page.plot(lefts, args.plot)
    # A Markdown table is redirected into a file, where the path has no place.
    print(page.write(lefts, args.html), file=sys.stderr if args.markdown else sys.stdout)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from draco.cli import compare as comparing

    def prepare(jobs: Sequence["Job"]) -> None:
        for job in {(job.data.name, job.data.root, job.device): job for job in jobs}.values():
            _require_device(args.grid, job.device)
            _prepare_data(job, console)

    console = _console()
    options = comparing.Options(args.runs, args.processes, args.dry_run, args.new)
    return comparing.compare(args.grid, options, console, prepare)


def _logs(args: argparse.Namespace) -> int:
    from draco.launch import logs
    from draco.launch.resume import named_or_newest

    run = named_or_newest(args.run, args.runs)
    if not logs.show(run, args.rank, args.follow):
        print(
            f"{run}: {'its processes' if args.rank is None else f'rank {args.rank}'} printed nothing", file=sys.stderr
        )
    return 0


def _stop(args: argparse.Namespace) -> int:
    from draco.launch import roster, stop
    from draco.launch.resume import named_or_newest

    run = named_or_newest(args.run, args.runs)
    stop.stop(run, kill=args.kill)
    if not args.no_wait:
        status = stop.wait(run, roster.read())
        print(f"{run}: {status.state} at step {status.step}{': ' + status.message if status.message else ''}")
    return 0


def _supervise(args: argparse.Namespace) -> int:
    from draco.launch import keep, roster, supervise
    from draco.runs.directory import read_job

    job, nodes = read_job(args.run), None if args.here else roster.read()
    after = keep.end_what_is_left(args.run, nodes) if args.again else None
    supervise.supervise(job, args.run, nodes, after=after)
    return 0


def _follow(args: argparse.Namespace) -> int:
    from draco.launch import follow, roster

    follow.follow(args.run, roster.read())
    return 0


def _head(args: argparse.Namespace) -> int:
    from draco.launch import head

    if args.what == "check":
        head.check()
    elif args.what == "runs":
        import json

        print(json.dumps(head.runs(Path("runs"))))
    elif args.what == "keep":
        from draco.launch import keep, supervise

        keep.keep(Path("runs"), lambda run: supervise.detach(run, here=False, again=True))
    else:
        run, why = args.rest
        print(head.lost(Path(run), why))
    return 0


def _bench(args: argparse.Namespace) -> int:
    for pool in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[pool] = "1"  # read when torch and numpy are first imported, which is now
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as in a run
    try:
        import benchmarks as bench
    except ModuleNotFoundError:
        raise MissingError("bench: the benchmarks are in the repository: run `make bench` in a checkout") from None
    only = args.only or bench.SECTIONS
    if unknown := [name for name in only if name not in bench.SECTIONS]:
        print(f"bench: --only {unknown[0]} is not one of {', '.join(bench.SECTIONS)}", file=sys.stderr)
        return 2
    bench.main(args.json, quick=args.quick, only=only)
    return 0


def _rank(args: argparse.Namespace) -> int:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # mpirun forwards it to ranks that are still importing; it would kill
    from draco.training import process

    process.main(args.run, args.simulate)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(arguments)
    if args.command == "rank":
        return int(args.do(args))
    command_line.warn(args)
    try:
        if args.command in command_line.ELSEWHERE and (cluster := command_line.target(args)):
            return command_line.same(cluster, args, arguments)
        return int(args.do(args))
    except DracoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if not (error.filename and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)):
            raise
        print(f"{error.filename}: cannot be written or read: {os.strerror(error.errno)}", file=sys.stderr)
        return TrainingError.exit_code
    except KeyboardInterrupt:  # of a command that only watches or waits
        return command_line.INTERRUPTED
