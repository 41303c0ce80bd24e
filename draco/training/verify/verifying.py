"""The verification of a run: its record is checked, some of its segments are recomputed, and a verdict is given.

Shapes: N segments, of which m were drawn.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from draco.errors import MissingError
from draco.job import Job
from draco.runs import chain, events
from draco.tasks.building import build_task
from draco.training import checkpoint
from draco.training.build import Built
from draco.training.verify import sample
from draco.training.verify.replay import Outcome, Replayer

TOLERANCE = 1e-3  # relative distance of models where bits cannot be equal; docs/verify.md has what was measured


class Verdict(NamedTuple):
    """What a verification came to."""

    wrong: str  # what is wrong, and where; empty: nothing was found to be
    unknown: str  # why something of the sample could not be judged; empty: all was
    drawn: int  # m
    of: int  # N
    exact: bool  # every segment drawn had the recorded bits
    distance: float  # the largest, of those that had not
    seconds: float  # that the recomputations took


def read_record(run: Path) -> chain.Chain:
    """Return the chain of a run.

    Raises:
        MissingError: it has none, or an empty one.
    """
    path = run / chain.NAME
    if not path.is_file():
        raise MissingError(
            f"{run}: has no chain.jsonl, so nothing of it can be verified: it was trained by an earlier version, or "
            "with chain: none"
        )
    found = chain.read(path)
    if not found.ends and not found.fault:
        raise MissingError(f"{run}: no line of its chain.jsonl is whole, so nothing of it can be verified")
    return found


def built(job: Job, here: Job, record: chain.Chain) -> Built:
    """Return the parts of a run's job; `here` is the same job with the paths of this machine."""
    vote = record.launches[-1].get("vote")
    return Built(job, build_task(here), vote if isinstance(vote, str) else None)


def fault_of_record(run: Path, record: chain.Chain, head: str | None = None) -> str:
    """Return what in a run's files does not fit its chain, or nothing; `head`: what its head is known to be."""
    if record.fault:
        return record.fault
    if head is not None and head != record.head:
        return f"the head of {chain.NAME} is {record.head}, and should be {head}"
    job = chain.digest((run / "job.yaml").read_bytes())
    for launch in record.launches:
        if launch.get("job") not in (None, job):
            return f"job.yaml has the SHA-256 {job}, and had {launch['job']} at the launch after step {launch['step']}"
    ends = [each for each in events.read(run / "events.jsonl") if each.get("event") in ("start", "end")]
    said = ends[-1].get("chain") if ends and ends[-1]["event"] == "end" else None
    if said not in (None, record.head):
        return f"the head of {chain.NAME} is {record.head}, and was {said} when the run ended"
    for step, path in checkpoint.steps(run / "checkpoints"):
        if (was := record.checkpoints.get(step)) not in (None, now := checkpoint.digest_of(path)):
            return f"{path.name} has the SHA-256 {now} in its manifest, and had {was} when it was saved"
    return ""


def verify(
    run: Path,
    built: Built,
    record: chain.Chain,
    *,
    share: float,
    seed: int | None = None,
    tolerance: float = TOLERANCE,
    secret: bytes = b"",
    tell: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Recompute a random share of a run's segments, one at least.

    Args:
        run: the run directory, which is only read.
        built: its job, with its data where they are here.
        record: its chain, in which no fault was found.
        share: of the segments, 0 to 1.
        seed: draws the segments; None: the operating system does.
        tolerance: see replay.py; it counts where bits cannot be expected to be equal.
        secret: the run's, if it is known.
        tell: is told of each step of the verification, in a line.

    Raises:
        MissingError: there is no segment, or the data are not here.
    """
    losses = {e["step"]: e["loss"] for e in events.read(run / "events.jsonl") if e.get("event") == "step"}
    replayer = Replayer(built, record, secret, losses)
    places = checkpoint.steps(run / "checkpoints")
    if wrong := _fault_of_checkpoints(replayer, places):
        return Verdict(wrong, "", 0, 0, False, 0.0, 0.0)
    there = sample.segments(record, places)
    if not there:
        raise MissingError(f"{run}: no step of it lies between two models that are known, so none can be recomputed")
    drawn = sample.draw(len(there), share, seed)
    steps = sum(there[i].steps for i in drawn)
    by = "the operating system" if seed is None else f"the seed {seed}"
    tell(f"sample: {len(drawn)} of {len(there)} segments, {steps} of {len(record.steps)} steps, drawn by {by}")
    if not replayer.expects_bits:
        tell(f"compared within {tolerance:g}: {replayer.why_no_bits}")
    began, outcomes = time.monotonic(), list[Outcome]()
    wrong = unknown = ""
    for i in drawn:
        outcome = replayer.replay(there[i])
        wrong, unclear = _judged(outcome, replayer.expects_bits, tolerance)
        unknown = unknown or unclear
        tell(f"{there[i]}: {wrong or unclear or _right(outcome)} ({outcome.seconds:.1f} s)")
        outcomes.append(outcome)
        if wrong:
            break
    return Verdict(
        wrong, unknown, len(drawn), len(there), all(each.difference is None for each in outcomes),
        max((each.distance or 0.0 for each in outcomes), default=0.0), time.monotonic() - began,
    )  # fmt: skip


def summary(verdict: Verdict) -> str:
    """Return what a sample without fault says of the whole run."""
    n, m = verdict.of, verdict.drawn
    few = max(1, math.ceil(n / 100))
    found = 1 - sample.chance_to_miss(n, m, few)
    most = sample.most_wrong(n, m)
    needed = sample.needed(n, few, 0.99)
    seconds = verdict.seconds / m * needed
    how = "bit for bit" if verdict.exact else f"within a relative distance of {verdict.distance:.1e}"
    return (
        f"no step of the sample was wrong, {how}. If {few} of the {n} segments were wrong, this sample would have "
        f"found one with probability {found:.3g}; with {sample.SURE:.0%} confidence at most {most} are. "
        f"{_more(needed, m, few, seconds)}"
    )


def _more(needed: int, drawn: int, few: int, seconds: float) -> str:
    if needed <= drawn:
        return "No larger sample is needed for 99%."
    return f"For 99% it takes {needed} segments, about {seconds:,.0f} s here."


def _fault_of_checkpoints(replayer: Replayer, places: list[tuple[int, Path]]) -> str:
    """Return which checkpoint is not what the chain says, or nothing."""
    for step, path in places:
        recorded = replayer.record.model(step)
        if recorded is None:
            continue
        try:
            found = replayer.model_in(step, path)
        except checkpoint.CheckpointError as error:
            return str(error)
        if found != recorded:
            return f"the model in {path.name} has the digest {found}, and had {recorded} after step {step}"
    return ""


def _judged(outcome: Outcome, expects_bits: bool, tolerance: float) -> tuple[str, str]:
    """Return what is wrong in a segment, and why it cannot be judged; one of them at most."""
    found = outcome.difference
    if found is None:
        return "", ""
    what = (
        f"step {found.step}: {found.what} is not what honest workers give: it is {found.recorded}, and they give "
        f"{found.honest}{found.note}"
    )
    if expects_bits:
        return what, ""
    if outcome.distance is None:
        return "", f"{what}; bits may differ here, and no checkpoint at its end holds a model to compare with"
    if outcome.distance > tolerance:
        return f"its model is {outcome.distance:.1e} from what honest workers give; first, {what}", ""
    return "", ""


def _right(outcome: Outcome) -> str:
    return "right, bit for bit" if outcome.difference is None else f"right, within {outcome.distance or 0:.1e}"
