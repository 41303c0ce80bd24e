"""Export: `draco export` makes a file of a run's model that loads without Draco."""

import argparse
from pathlib import Path
from typing import Any

from draco.cli import arguments, console, jobs


def add(commands: Any) -> None:
    """Add `draco export` to the parser."""
    parser = arguments.command(
        commands, "export", export, "write a run's model as safetensors or as a plain state_dict",
        "The file loads in plain PyTorch. It is of the newest checkpoint, and with ema of the averaged weights.",
    )  # fmt: skip
    arguments.add_run(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=arguments.count, metavar="N", help="the checkpoint of this step")
    which.add_argument("--best", action="store_true", help="the checkpoint with the best evaluation")
    parser.add_argument(
        "--format", choices=("safetensors", "state_dict"), help="(default: by the name of FILE, else safetensors)"
    )
    parser.add_argument("--last", action="store_true", help="the last weights, where the job averages them (ema)")
    parser.add_argument("--trained", action="store_true", help="without frozen parameters, such as adapters alone")
    parser.add_argument(
        "--output", type=arguments.path, metavar="FILE", help="(default: RUN/exports/step-00000120.safetensors)"
    )


def export(args: argparse.Namespace) -> int:
    """Run `draco export`; a job's own code is loaded from the run."""
    from draco.code import recorded
    from draco.launch.resume import named_or_newest

    run = named_or_newest(args.run, args.runs)
    with recorded.loading_from(run):
        return _export(args, run)


def _export(args: argparse.Namespace, run: Path) -> int:
    from draco.training import exporting
    from draco.training.build import Built

    job = jobs.of_run(run)
    step, path = exporting.best(run, job) if args.best else exporting.chosen(run, args.step)
    kind = args.format or exporting.SUFFIXES.get(args.output.suffix if args.output else "", "safetensors")
    output = args.output or _place(run, step, kind, args)
    made = exporting.export(Built(job), step, path, output, kind, last=args.last, trained=args.trained)
    console.say(f"{made.path}: step {made.step}, {made.size:,} bytes, SHA-256 {made.sha256}")
    return 0


def _place(run: Path, step: int, kind: str, args: argparse.Namespace) -> Path:
    words = [f"step-{step:08d}", *(["last"] if args.last else []), *(["trained"] if args.trained else [])]
    return run / "exports" / ("-".join(words) + (".pt" if kind == "state_dict" else ".safetensors"))
