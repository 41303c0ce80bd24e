"""Verification: `draco verify` recomputes a random part of a run and says what follows for the whole."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draco.cli import arguments, console, jobs
from draco.errors import MissingError, VerifyError

if TYPE_CHECKING:
    from draco.job import Job
    from draco.runs.chain import Chain
    from draco.training.verify.verifying import Verdict


def add(commands: Any) -> None:
    """Add `draco verify` to the parser."""
    parser = arguments.command(
        commands, "verify", verify, "recompute a random part of a run, and say what that tells of the whole",
        "It needs the run directory and the data, not the workers, and writes nothing. docs/verify.md has the rest.",
    )  # fmt: skip
    arguments.add_run(parser)
    parser.add_argument(
        "--sample", type=_share, default=0.01, metavar="PART",
        help="share of the segments between checkpoints, such as 5%% or 0.05; one at least (default: 1%%)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", help="draw them by this (default: the operating system does)")
    parser.add_argument("--data", type=arguments.path, metavar="DIR", help="the folder of data sets here")
    parser.add_argument("--head", metavar="SHA256", help="the digest that the last line of its chain is known to have")
    parser.add_argument(
        "--tolerance", type=_share, metavar="X",
        help="relative distance of models that is taken for rounding, where bits cannot be equal (default: 0.1%%)",
    )  # fmt: skip


def verify(args: argparse.Namespace) -> int:
    """Run `draco verify`; a job's own code is loaded from the run."""
    from draco.code import recorded
    from draco.launch.resume import named_or_newest

    run = named_or_newest(args.run, args.runs)
    with recorded.loading_from(run):
        return _verify(args, run)


def _verify(args: argparse.Namespace, run: Path) -> int:
    from draco.training.verify import verifying

    job = _here(jobs.of_run(run), args.data)
    record = verifying.read_record(run)
    if wrong := verifying.fault_of_record(run, record, args.head):
        raise VerifyError(f"{run}: wrong: {wrong}")
    console.say(f"{run}: chain of {len(record.steps)} steps, head {record.head}")
    for first, last in record.gaps:
        console.warn(f"{run}: nothing is recorded of the steps {first} to {last}")
    found = _recomputed(args, run, job, record)
    if found.wrong:
        raise VerifyError(f"{run}: wrong: {found.wrong}")
    if found.unknown:
        raise MissingError(f"{run}: whether it is right cannot be said: {found.unknown}")
    console.say(f"{run}: {verifying.summary(found)}")
    return 0


def _recomputed(args: argparse.Namespace, run: Path, job: "Job", record: "Chain") -> "Verdict":
    import torch

    from draco.runs import directory
    from draco.training import device, process, repeatable
    from draco.training.verify import verifying

    jobs.require_weights(job)
    torch.set_num_threads(job.threads)
    secret = directory.secret(run) if (run / "secret").exists() else b""
    recorded, on_cpu = directory.read_job(run), {"device": "cpu", "server_device": "cpu"}
    if "cuda" in (job.device, job.server_device) and not device.gpus():
        console.warn(f"{run}: was trained on GPUs, and torch sees none here: it is recomputed on the CPU")
        recorded, job = recorded.model_copy(update=on_cpu), job.model_copy(update=on_cpu)
    built = verifying.built(recorded, job, record)
    tolerance = verifying.TOLERANCE if args.tolerance is None else args.tolerance
    with repeatable.settled(job, *process.used_here(job)):
        return verifying.verify(
            run, built, record, share=args.sample, seed=args.seed, tolerance=tolerance, secret=secret, tell=console.say
        )


def _here(job: "Job", root: Path | None) -> "Job":
    """Return the job with the paths of this machine, and its data in `root` where that is given."""
    from draco.launch import ready

    if root is not None:
        job = job.model_copy(update={"data": job.data.model_copy(update={"root": str(root)})})
    return ready.here(job)


def _share(text: str) -> float:
    """Return the share that a text such as 1% or 0.01 is."""
    number = text.removesuffix("%")
    try:
        value = float(number) / (100 if number != text else 1)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"is {text}; it must be a share such as 1% or 0.01, more than 0 and up to 1")
    return value
