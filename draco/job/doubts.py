"""What a job may say though its user may not have meant it."""

from draco.aggregators import AGGREGATORS
from draco.job.fields import Job
from draco.job.numbers import aggregator_f, attack, byzantine_count, sizes
from draco.optimizers import OPTIMIZERS
from draco.schemes import SCHEMES


def warnings(job: Job) -> list[str]:
    """Return a sentence for everything that is allowed but that a user may not have meant."""
    found: list[str] = []
    optimizer = OPTIMIZERS[job.optimizer.name]
    if doubt := optimizer.doubt(optimizer.arguments(job.optimizer.given())):
        found.append(f"optimizer: {doubt}")
    s, scheme, rule, (_, m, bad) = job.scheme.adversaries, job.scheme.name, job.aggregator.name, sizes(job)
    individual, robust, f = SCHEMES[scheme].individual, AGGREGATORS[rule].robust, aggregator_f(job)
    count = byzantine_count(job)
    if not individual and count > s:
        found.append(f"attack: {count} workers are Byzantine but {scheme} is built for {s}: steps may fail or be wrong")
    if individual and not robust and not job.aggregator.pre and (count or s):
        expected = max(count, s)
        found.append(
            f"scheme: {scheme} with {rule} tolerates no adversary, and {expected} are expected: nothing defends"
        )
    given = attack(job)
    if given and given.strength and given.usual_strength and job.attack.get(given.strength) is None:
        strength = given.usual_strength(job.workers, count)
        if strength <= 0:
            found.append(
                f"attack: {given.name}'s formula gives {given.strength} = {strength:.3g} for {count} Byzantine workers "
                f"among {job.workers}, which does no harm: set attack.{given.strength}, or let more attack"
            )
    if individual and robust and count > f:
        found.append(f"attack: {count} workers are Byzantine but {rule} is set to tolerate f = {f}")
    if not individual and f < bad:
        tolerates = f"is set to tolerate f = {f}" if robust else "tolerates none"
        found.append(f"aggregator: adversaries may win or spoil {bad} gradients after {scheme}, and {rule} {tolerates}")
    if robust and m == 1:
        found.append(f"aggregator: {scheme} leaves one gradient, so {rule} has nothing to choose from")
    stop, every = job.stop_early, job.eval_every
    if stop and every and job.steps is not None and (least := (stop.patience + 1) * every) >= job.steps:
        found.append(
            f"stop_early: patience {stop.patience} and eval_every {every} end a run after {least} steps at the "
            f"earliest, and the job has {job.steps}"
        )
    if job.local.momentum and job.optimizer.get("momentum"):
        found.append("local.momentum: optimizer.momentum averages over steps once more, at the server")
    if job.ema and job.steps is not None and (span := 1 / (1 - job.ema)) > job.steps / 2:
        found.append(f"ema: averages over about {span:.0f} steps, and the job has {job.steps}: lower ema")
    if job.steps is not None and any(stone >= job.steps for stone in job.schedule.get("milestones") or ()):
        found.append(f"schedule.milestones: some lie at or beyond the last step, {job.steps}, and change nothing")
    return found
