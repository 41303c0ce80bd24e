"""The search for leftovers by their tags, and their removal where Terraform no longer knows of them.

No state file is read, so a cluster whose state is lost is found and removed as well. Only what is tagged Project=draco
and Cluster=<name> is touched.
"""

import itertools
import time
from collections.abc import Callable, Sequence, Set
from datetime import UTC, datetime
from typing import NamedTuple

from botocore.exceptions import ClientError
from rich.table import Table

from draco.cluster.aws.account import speaking
from draco.cluster.aws.leftovers.kinds import KINDS, Kind, Seen, is_gone
from draco.errors import DracoError, LeftoversError, MissingError

_POLL_S = 2.0
_NAMED = {"key pair", "launch template", "placement group", "security group", "image repository", "instance profile",
          "role", "log group"}  # fmt: skip
_AFTER_A_FAULT_S = 60.0


class Left(NamedTuple):
    """One thing of a cluster's."""

    kind: str  # a name in kinds.KINDS
    id: str
    name: str  # of the cluster
    root: str  # "cluster", or "base": what outlives clusters
    owner: str
    note: str
    costs: bool  # by being there
    expires_at: datetime | None
    ending: bool = False  # being deleted


def find(
    region: str, name: str | None = None, roots: Sequence[str] = ("cluster", "base")
) -> tuple[list[Left], list[str]]:
    """Return what is left of one cluster or of all, and one sentence for each kind that could not be looked up.

    Things that are being deleted are not among it.

    Raises:
        MissingError: nothing can be looked at: no credentials, or AWS does not answer.
    """
    found: list[Left] = []
    unseen: list[DracoError] = []
    kinds = _kinds(roots)
    for kind in kinds:
        try:
            found += [thing for thing in _look(kind, region, name) if thing.root in roots and not thing.ending]
        except DracoError as error:
            if not isinstance(error.__cause__, ClientError):
                raise
            unseen.append(error)
    if len(unseen) == len(kinds):
        raise unseen[0]
    return found, [str(error) for error in unseen]


def remove(region: str, name: str, roots: Sequence[str], say: Callable[[str], None], limit_s: float = 600.0) -> None:
    """Remove everything of a cluster in `roots`, "cluster" or also "base", and wait until it is gone.

    Removing the base removes all runs and checkpoints: ask before. May be called again, and beside Terraform.

    Raises:
        LeftoversError: lists what could not be removed or looked at, each with the reason.
        MissingError: no credentials, or AWS does not answer.
    """
    deadline = time.monotonic() + limit_s
    faults: list[str] = []
    for kind in _kinds(roots):
        faults += _remove_all(kind, region, name, roots, say, deadline)
        if faults:  # what the stuck things hold cannot be deleted either, so a long wait is of no use
            deadline = min(deadline, time.monotonic() + _AFTER_A_FAULT_S)
    if faults:
        raise LeftoversError(
            "\n".join([f"{name}: not everything could be removed; the same command may be given again", *faults])
        )


def remove_strays(region: str, name: str, root: str, known: Set[str], say: Callable[[str], None]) -> None:
    """Remove things that hold a name that Terraform needs, and are not in its state.

    They come from a Terraform that was stopped before AWS answered. `known`: every string of the state. Data are safe:
    file systems have no names.

    Raises:
        LeftoversError: something could not be removed.
    """
    faults: list[str] = []
    for kind in KINDS:
        if kind.name in _NAMED:
            strays = [each for each in _look(kind, region, name) if each.root == root and each.id not in known]
            for each in strays:
                say(f"removing {each.kind} {each.id}, which nobody knows of")
                if refusal := _refusal(kind, region, each):
                    faults.append(str(refusal))
    if faults:
        raise LeftoversError("\n".join(faults))


def table(found: Sequence[Left]) -> Table:
    """Return what was found as a table: first the clusters' own things, then what outlives them."""
    out = Table("cluster", "what", "id", "about", "costs", "expires", "owner", box=None)
    for thing in sorted(found, key=lambda thing: (thing.root != "cluster", thing.name, not thing.costs)):
        out.add_row(
            thing.name or "?", thing.kind, thing.id, thing.note, "$" if thing.costs else "", _when(thing.expires_at),
            thing.owner, style="red" if thing.root == "cluster" and thing.costs else "",
        )  # fmt: skip
    return out


def sentence(found: Sequence[Left]) -> str:
    """Return what was found, one thing per line."""
    return "\n".join(_sentence(thing) for thing in found)


def _kinds(roots: Sequence[str]) -> list[Kind]:
    return [kind for kind in KINDS if "base" in roots or not kind.base]


def _sentence(thing: Left) -> str:
    note = f" ({thing.note})" if thing.note else ""
    costs = ", costs money" if thing.costs else ""
    expires = f", expires {_when(thing.expires_at)}" if thing.expires_at else ""
    owner = f", of {thing.owner}" if thing.owner else ""
    return f"{thing.name or '?'}: {thing.kind} {thing.id}{note}{costs}{expires}{owner}"


def _when(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment else ""


def _expiry(tag: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(tag or "")
    except ValueError:
        return None  # somebody edited it; the node keeps to the last one that it could read
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _left(kind: Kind, seen: Seen) -> Left:
    tags = seen.tags
    root = "base" if kind.base else tags.get("Root", "cluster")
    return Left(
        kind.name, seen.id, tags.get("Cluster", ""), root, tags.get("Owner", ""), seen.note, seen.costs,
        _expiry(tags.get("ExpiresAt")), seen.ending,
    )  # fmt: skip


def _look(kind: Kind, region: str, name: str | None) -> list[Left]:
    """Return the things of one kind. Tags are compared here again, because EC2's filters take wildcards."""
    with speaking(f"{region}: {kind.names} cannot be looked at"):
        seen = list(kind.look(region, name))
    ours = [one for one in seen if one.tags.get("Project") == "draco"]
    return [_left(kind, one) for one in ours if name is None or one.tags.get("Cluster") == name]


def _remove_all(
    kind: Kind, region: str, name: str, roots: Sequence[str], say: Callable[[str], None], deadline: float
) -> list[str]:
    """Remove the things of one kind; return a sentence for each that is still there.

    A refused deletion is tried again until the deadline, because what holds the thing may be going.
    """
    for attempt in itertools.count():
        try:
            left = [thing for thing in _look(kind, region, name) if thing.root in roots]
        except DracoError as error:
            if not isinstance(error.__cause__, ClientError):
                raise
            return [str(error)]
        if not left:
            return []
        counted = f"{len(left)} {kind.name if len(left) == 1 else kind.names}"
        say(f"waiting for {counted} to go" if attempt else f"removing {counted}")
        reasons = {thing: None if thing.ending else _refusal(kind, region, thing) for thing in left}
        forbidden = all(isinstance(reason, MissingError) for reason in reasons.values())
        if forbidden or (attempt and time.monotonic() > deadline):  # not before a second look
            return [f"{_sentence(one)}: {why or 'was told to go, and is still there'}" for one, why in reasons.items()]
        time.sleep(min(_POLL_S, attempt / 4))
    return []


def _refusal(kind: Kind, region: str, thing: Left) -> DracoError | None:
    """Delete one thing; return AWS's refusal, if any."""
    try:
        with speaking("cannot be removed"):
            kind.delete(region, thing.id)
    except DracoError as error:
        cause = error.__cause__
        if not isinstance(cause, ClientError):
            raise
        return None if is_gone(cause) else error
    return None
