"""The probability that a lie survives verification, in the whole run.

Theorem. Let at most s of n workers be Byzantine, and let `a` verifiers of each pair be drawn after its upload,
uniformly among the others. Then the probability that any step of the run stays false is at most 1 - prod (1 - sigma_e)
over e = 0..s-1, however many steps there are and whatever the liars do, with sigma_e = C(s-e-1, a) / C(n-e-1, a).
Proof: call a step with at least one false upload a try, made when e workers are expelled. Its draw is independent of
all that was sent before. Take one of its false pairs. If one honest worker is among its verifiers, the claims differ;
then every pair of the step gets lies + 1 claimants, so all its lies are replaced, and the pair's uploader is expelled.
So a try survives only if all `a` verifiers of that pair are among the s-e-1 other liars: with probability sigma_e at
most, even with several lies in the step. A try that fails costs at least one identity for ever, and sigma_e falls with
e. So the liars have at most s tries, the best of them at e = 0, 1, ..., s-1.

The bound is reached where colluders see all draws, lie one at a time, and confirm only where every verifier colludes.
It would be false if a step's other lies stood while one is found: then s workers could lie at the same step, each with
sigma_0. Assumptions: nobody foresees a draw, and no draw is made again for the same uploads, or after a resumption;
whether an honest worker is late does not depend on what it is asked. With up to `absent` workers away at a try, n-e-1
is n-e-1-absent. Where still fewer can answer, `verifiers_for` says how many more are drawn for the same sigma. Our own
derivation.
"""

from __future__ import annotations

from functools import cache
from math import comb, expm1, log1p


def sigma(workers: int, adversaries: int, verifiers: int, absent: int = 0) -> float:
    """Return the probability that one lie survives: that all its verifiers collude with the liar.

    Args:
        workers: n that are not expelled, the liar among them.
        adversaries: s of these who may lie, the liar among them; at least 1.
        verifiers: a, drawn without replacement among the others that can answer.
        absent: how many honest workers cannot answer.
    """
    others = workers - 1 - absent
    if verifiers >= adversaries:
        return 0.0
    return comb(adversaries - 1, verifiers) / max(comb(others, verifiers), comb(adversaries - 1, verifiers))


def failure_probability(workers: int, adversaries: int, verifiers: int, absent: int = 0) -> float:
    """Return a bound on the probability that any step of a run stays false, for any number of steps and any strategy.

    Args:
        workers: n.
        adversaries: s, those who may lie.
        verifiers: a of each pair; fewer where fewer liars are left than that.
        absent: how many honest workers are away at the same time, at most.
    """
    survive = [sigma(workers - out, adversaries - out, verifiers, absent) for out in range(adversaries)]
    return 1.0 if 1.0 in survive else abs(expm1(sum(log1p(-each) for each in survive)))


def least_verifiers(workers: int, adversaries: int, delta: float, absent: int = 0) -> int:
    """Return the least number of verifiers with which the probability of a false step is `delta` at most.

    With as many as there are adversaries it is 0, so there always is one.
    """
    return next(
        verifiers
        for verifiers in range(adversaries + 1)
        if failure_probability(workers, adversaries, verifiers, absent) <= delta
    )


@cache
def verifiers_for(others: int, lies: int, nominal: int, verifiers: int) -> int:
    """Return how many verifiers make a lie as improbable among `others` as `verifiers` do among `nominal` others.

    At least min(verifiers, lies), at most `lies`, of whom one is honest in any case.
    """
    least = min(verifiers, lies)
    if least == lies or others >= nominal:
        return least
    return next(
        more
        for more in range(least, lies + 1)
        if comb(lies - 1, more) * comb(nominal, least) <= comb(lies - 1, least) * comb(others, more)
    )
