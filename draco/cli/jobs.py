"""Job files: `draco validate`, `draco data`, and what other commands need of a job before they run it."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draco.cli import arguments, console, where
from draco.errors import JobError, OwnCodeError

if TYPE_CHECKING:
    from draco.cluster.backend import Cluster
    from draco.job import Job


def add(commands: Any) -> None:
    """Add `draco validate` and `draco data` to the parser."""
    checks = arguments.command(
        commands, "validate", validate, "check job files and list every fault",
        "Nothing is trained or written. docs/jobs.md is the reference of every key; --reference prints it.",
    )  # fmt: skip
    checks.add_argument("jobs", nargs="*", type=arguments.path, metavar="JOB", help="job files")
    arguments.add_set(checks)
    checks.add_argument("--schema", action="store_true", help="print the JSON Schema of a job instead")
    checks.add_argument(
        "--reference", action="store_true", help="print the reference of job files instead, in Markdown"
    )
    prepares = arguments.command(
        commands, "data", data, "download or convert the data sets of jobs, and check them",
        "`draco train` prepares a job's data by itself; this does it beforehand.",
    )  # fmt: skip
    prepares.add_argument("jobs", nargs="+", type=arguments.path, metavar="JOB", help="job files")
    arguments.add_where(prepares)


def read_job(path: Path, overrides: Sequence[str] = (), *, checked: bool = False) -> "Job":
    """Return the job in a file, or on standard input where the path is `-`.

    Raises:
        JobError: it cannot be read, or everything that is wrong with it.
    """
    from draco.job import parse

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError([f"{path}: cannot be read ({error}); name a job file such as jobs/quickstart.yaml"]) from error
    return parse(text, str(path), overrides, checked=checked)


def validate(args: argparse.Namespace) -> int:
    """Run `draco validate`."""
    if args.schema:
        from draco.job import schema

        print(json.dumps(schema(), indent=2))
        return 0
    if args.reference:
        from draco.job.reference import reference

        print(reference())
        return 0
    from draco.code.gather import gather

    if not args.jobs:
        raise JobError(["validate: name at least one job file, --schema or --reference"])
    faults: list[str] = []
    for path in args.jobs:
        try:
            gather(read_job(path, args.set))
        except JobError as error:
            faults += error.faults
        except OwnCodeError as error:
            faults += [f"{path}: {line}" for line in str(error).splitlines()]
        else:
            console.say(f"{path}: valid")
    if faults:
        raise JobError(faults)
    return 0


def data(args: argparse.Namespace) -> int:
    """Run `draco data`."""
    from draco.data import verify
    from draco.launch import ready

    if cluster := where.target(args):
        return _data_on_cluster(cluster, [read_job(path) for path in args.jobs])
    for path in args.jobs:
        job = ready.here(read_job(path))
        if job.data.name is None:
            console.say(f"{path}: its task has its own data; nothing to prepare")
            continue
        ready.prepare_data(job, console.messages())
        verify(job.data.name, Path(job.data.root), own=job.data.own)
        console.say(f"{job.data.name}: complete and unchanged in {Path(job.data.root) / job.data.name}")
    return 0


def _data_on_cluster(cluster: "Cluster", jobs: Sequence["Job"]) -> int:
    """Prepare the data of every job on the cluster's storage."""
    from draco.cluster import remote
    from draco.job import to_yaml

    return max(remote.same(cluster, ["data", "-"], to_yaml(job)) for job in jobs)
