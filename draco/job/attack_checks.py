"""Does the attack go together with who is Byzantine, with the scheme and with itself?"""

from collections.abc import Iterator

from draco.job.fault import Fault, option_path
from draco.job.fields import Job
from draco.job.messages import show
from draco.job.numbers import attack, byzantine_count
from draco.schemes import SCHEMES


def of_attack(job: Job) -> Iterator[Fault]:
    """Yield what does not go together in the attack and in who is Byzantine."""
    if attack(job) is None:
        return
    given, n = job.attack, job.workers
    about = (
        "workers", "attack.name", "attack.ranks", "attack.adversaries", "attack.fraction", "scheme.adversaries"
    )  # fmt: skip
    yield from _of_count(job, about)
    yield from _of_needs(job, (*about, "scheme.name"))
    if given.until_step is not None and given.until_step < given.from_step:
        message = f"must be at least attack.from_step = {given.from_step}, got {given.until_step}"
        yield Fault("attack.until_step", message, ("attack.from_step",))
    if given.ranks is None:
        return
    ranks = show(list(given.ranks))
    if len(set(given.ranks)) < len(given.ranks):
        yield Fault("attack.ranks", f"must be distinct, got {ranks}")
    if max(given.ranks) > n:
        yield Fault("attack.ranks", f"must be from 1 to {n} workers, got {ranks}", ("workers",))
    if given.adversaries not in (None, len(given.ranks)):
        yield Fault("attack.ranks", f"must be attack.adversaries = {given.adversaries} ranks, got {ranks}", about)
    if given.who != "fixed":
        message = f"are fixed ranks and attack.who is {given.who}: give one of the two"
        yield Fault("attack.ranks", message, ("attack.who",))


def _of_count(job: Job, about: tuple[str, ...]) -> Iterator[Fault]:
    """Yield what does not go together in how many are Byzantine."""
    given, n = job.attack, job.workers
    if given.fraction is not None:
        for other in ("adversaries", "ranks"):
            if getattr(given, other) is not None:
                yield Fault("attack.fraction", f"must be left out beside attack.{other}", about)
        if byzantine_count(job) == 0:
            message = f"must be at least 1/{n}, one worker of {n}, got {given.fraction}"
            yield Fault("attack.fraction", message, about)
    elif byzantine_count(job) == 0:
        message = f"{given.name} needs at least 1 Byzantine worker, got scheme.adversaries = 0"
        yield Fault("attack.adversaries", message, about)
    if given.adversaries is not None and given.adversaries > n:
        message = f"{given.adversaries} Byzantine workers need as many workers, got {n}"
        yield Fault("attack.adversaries", message, about)


def _of_needs(job: Job, about: tuple[str, ...]) -> Iterator[Fault]:
    """Yield what the attack cannot do in this job."""
    declared, given, count = attack(job), job.attack, byzantine_count(job)
    scheme = SCHEMES[job.scheme.name]
    assert declared is not None
    if declared.needs_honest and count >= job.workers:
        message = f"{given.name} needs an honest worker, {count} of {job.workers} are Byzantine"
        yield Fault("attack.name", message, about)
    elif declared.usual_strength and declared.strength and given.get(declared.strength) is None:
        try:
            declared.usual_strength(job.workers, count)
        except ValueError as e:
            yield Fault(option_path(job, "attack", declared.strength), f"is missing: {e}", about)
    if fault := declared.fault(scheme):
        yield Fault("attack.name", fault, about)
    if scheme.expels and given.who != "fixed":
        message = f"must be fixed: {job.scheme.name} expels who is proven to lie, got {given.who}"
        yield Fault("attack.who", message, ("scheme.name",))
    if scheme.rounds(job.scheme.given()) and given.ranks is None and given.who == "placed":
        message = "must be fixed, drawn or rotating: with scheme.uplink digest no worker has a row, got placed"
        yield Fault("attack.who", message, ("scheme.uplink", "attack.name"))
    if declared.lasting and (given.who != "fixed" or given.until_step is not None):
        message = (
            f"{given.name} is for good, as a worker that owes an answer gets no task: needs attack.who fixed and no "
            "attack.until_step"
        )
        yield Fault("attack.name", message, ("attack.who", "attack.until_step"))
