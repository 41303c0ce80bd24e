"""A run's own code on every node of a cluster: in the shared storage, which workers only read, or else sent to each."""

from collections.abc import Sequence
from pathlib import Path

from draco.code import recorded, store
from draco.code.pack import Pack, dumped
from draco.code.recorded import Copy
from draco.errors import MissingError
from draco.launch import every_node
from draco.launch.roster import Roster

_LIMIT_S = 120.0  # for some megabytes by ssh


def folder(pack: Pack, run: Path, roster: Roster | None) -> Path:
    """Return where ranks of a run find its own code: in the run, or on a cluster at the same place on every node."""
    return Path(every_node.WORK, store.STORE, pack.digest) if roster else run / recorded.FOLDER


def on_head(pack: Pack) -> Copy:
    """Return the copy that ranks load from, on the head and at the same place on every node; made where it is missing.

    Where nodes share a storage the head's copy is all of theirs.
    """
    return Copy(store.put(pack, Path(every_node.WORK, store.STORE)), pack.digest)


def of_run(run: Path, roster: Roster | None) -> Copy | None:
    """Return the copy that a launch of a run loads from: the run's own, or on a cluster what the nodes have of it.

    Raises:
        OwnCodeError: the run's own was changed.
    """
    pack = recorded.pack_of(run)
    return (on_head(pack) if roster else recorded.copy(run)) if pack.files else None


def provide(roster: Roster, pack: Pack, only: Sequence[str] | None = None) -> None:
    """Put a pack on the worker nodes, or those named, that do not see the head's.

    Raises:
        MissingError: a node cannot take it; names the node and the reason.
    """
    if not pack.files or (only is not None and not only):
        return
    on_head(pack)
    digest = pack.digest
    there = every_node.ask(roster, every_node.module(roster, "draco.code.store", "has", digest), only=only or ())
    lacking = [name for name, answer in there.items() if answer.fault]
    if not lacking:
        return
    command = every_node.module(roster, "draco.code.store", "put", digest)
    answers = every_node.ask(roster, command, limit_s=_LIMIT_S, text=dumped(pack), only=lacking)
    faults = [f"{name}: the job's own code: {answer.fault}" for name, answer in answers.items() if answer.fault]
    if faults:
        raise MissingError("\n".join(faults))
