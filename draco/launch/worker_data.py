"""A job's data set on every worker node: on shared storage, or else prepared there."""

import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath

from draco.errors import MissingError
from draco.job import Job, to_yaml
from draco.launch import every_node
from draco.launch.roster import Roster

_PREPARE_LIMIT_S = 1800.0  # a download on each node


def provide(roster: Roster, job: Job, only: Sequence[str] | None = None) -> None:
    """Prepare the job's data set on the worker nodes, or those named, that do not see the head's.

    Raises:
        MissingError: a node cannot prepare it; names the node and the reason.
    """
    if job.data.name is None or (only is not None and not only):
        return
    folder = PurePosixPath(every_node.WORK, job.data.root, job.data.name)
    there = every_node.ask(roster, ["test", "-d", shlex.quote(str(folder))], only=only or ())
    lacking = [name for name, answer in there.items() if answer.fault]
    command = every_node.module(roster, "draco", "data", "-")
    answers = (
        every_node.ask(roster, command, limit_s=_PREPARE_LIMIT_S, text=to_yaml(job), only=lacking) if lacking else {}
    )
    faults = [f"{name}: {job.data.name}: {answer.fault}" for name, answer in answers.items() if answer.fault]
    if faults:
        raise MissingError("\n".join(faults))
