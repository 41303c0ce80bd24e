"""What follows from a job's fields: who computes how much, how many may be bad, how long it goes on.

Letters as in `fields`: n workers, s adversaries, r redundancy, k partitions, m gradients after decoding, f bad ones.
"""

import math
from typing import Any

from draco.job.fields import Job, Scheme, applies_to

GROUPED = ("repetition", "detox")  # schemes whose workers fall into groups of one partition each
FALLIBLE = ("detox", "placement")  # schemes with a vote that adversaries within their promise may win here and there
DESIGNED = ("approximate", "election")  # schemes with a choice of designs, some of them drawn


def partitions(job: Job) -> int:
    """Return k, the number of partitions that a step's batch is cut into; 1 where there are too few workers."""
    n, r = job.workers, group_size(job)
    if job.scheme.name == "placement":
        return max(math.comb(n, r) if job.scheme.design == "subset" else (n // r) ** 2, 1)
    return max(n // r, 1) if job.scheme.name in GROUPED else n


def keeps_rows(job: Job) -> bool:
    """Say whether worker i has row i - 1 at every step: its samples or its momentum are its own."""
    return job.data.split != "iid" or job.local.momentum > 0


def group_size(job: Job) -> int:
    """Return r, the workers on a partition, in groups before leftover workers join them."""
    usual = 2 * job.scheme.adversaries + 1 if job.scheme.name == "repetition" else 3
    return job.scheme.redundancy or usual


def bad(job: Job) -> int:
    """Return how many of the decoded gradients the scheme's adversaries may make wrong or leave without a majority.

    A code takes out up to s liars, so after it every gradient is good; of DETOX and a placement they may win votes.
    """
    s = job.scheme.adversaries
    if job.scheme.name not in FALLIBLE:
        return s if job.scheme.name == "uncoded" else 0
    from draco.schemes import build  # imports torch: late

    try:
        return build(job.scheme.name, workers=job.workers, adversaries=s, **structure(job)).bad
    except ValueError:  # which `check` reports
        return s


def aggregator_f(job: Job) -> int:
    """Return f, the number of bad ones among the m decoded gradients that the aggregator must bear; see `bad`."""
    if job.aggregator.name == "mean" and not job.aggregator.pre:
        return 0
    return bad(job) if job.aggregator.f is None else job.aggregator.f


def structure(job: Job) -> dict[str, Any]:
    """Return the options that decide who computes what, as `draco.schemes.build` takes them."""
    options = {
        key: getattr(job.scheme, key) for key in ("redundancy", "design", "code", "inside", "stragglers", "parts")
    }
    names = {key: applies_to(Scheme, key) for key in options}
    return {key: value for key, value in options.items() if value is not None and job.scheme.name in names[key]}


def decoded(job: Job) -> int:
    """Return m, the number of gradients that decoding leaves for the aggregator."""
    return 1 if job.scheme.name in ("cyclic", "cyclic_dft", "approximate", "election", "solon") else partitions(job)


def liars(job: Job) -> int:
    """Return the number of workers that lie at each step."""
    attack = job.attack
    if attack.name == "none":
        return 0
    if attack.adversaries is not None:
        return attack.adversaries
    if attack.fraction is not None:
        return math.floor(attack.fraction * job.workers + 1e-9)  # 0.29 * 100 is 28.999...
    return len(attack.ranks) if attack.ranks is not None else job.scheme.adversaries


def total_steps(job: Job, train_size: int) -> int:
    """Return the number of the last step; the last batch of `epochs` is filled up from the epoch after."""
    if job.steps is not None:
        return job.steps
    assert job.epochs is not None
    return math.ceil(job.epochs * train_size / job.batch_size)
