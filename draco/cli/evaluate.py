"""Evaluation: `draco eval` evaluates a run's checkpoints on the test samples."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from draco import metrics
from draco.cli import arguments, console, jobs
from draco.errors import ExitCode


def add(commands: Any) -> None:
    """Add `draco eval` to the parser."""
    parser = arguments.command(
        commands, "eval", evaluate, "evaluate a run's checkpoints: accuracy, or the task's metrics",
        "Results go to evaluations.jsonl in the run directory; a checkpoint is evaluated once.",
    )  # fmt: skip
    arguments.add_run(parser)
    parser.add_argument("--follow", action="store_true", help="wait for new checkpoints until the run ends")
    parser.add_argument("--batch-size", type=int, metavar="N", help="samples per batch (default: the job's)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to evaluate (default: the job's)")


def evaluate(args: argparse.Namespace) -> int:
    """Run `draco eval`; a job's own code is loaded from the run."""
    from draco.code import recorded
    from draco.launch.resume import named_or_newest

    run = named_or_newest(args.run, args.runs)
    with recorded.loading_from(run):
        return _evaluate(args, run)


def _evaluate(args: argparse.Namespace, run: Path) -> int:
    from draco.training import repeatable
    from draco.training.build import Built
    from draco.training.evaluate import evaluate_run, passed_over, where

    job = jobs.of_run(run)
    there, why = where(job, args.device)
    if why:
        console.warn(why)
    count = 0
    refused: set[int] = set()

    def refuse(step: int, why: str) -> None:
        refused.add(step)
        console.warn(f"not evaluated: {why}")

    with repeatable.settled(job, there):
        for step, result in evaluate_run(
            run, Built(job), follow=args.follow, batch_size=args.batch_size, on=there, refuse=refuse
        ):
            count += 1
            refused.discard(step)
            console.say(f"step {step}: " + _line(result.metrics))
    if gone := passed_over(run):
        which = f"step {gone[0]}" if len(gone) == 1 else f"{len(gone)} of the steps {gone[0]} to {gone[-1]}"
        console.warn(f"not there any more: {which}; checkpoint_keep: all keeps every checkpoint")
    if refused:
        return ExitCode.FAILED
    if not count:
        console.say(f"{run}: every checkpoint is evaluated already; see {run / 'evaluations.jsonl'}")
    return 0


def _line(found: Mapping[str, float]) -> str:
    """Return the metrics of an evaluation as they are printed."""
    forms = {name: ".4f" if name in metrics.MODES else ".4g" for name in metrics.ordered(found)}
    return "  ".join(f"{metrics.label(name)} {found[name]:{form}}" for name, form in forms.items())
