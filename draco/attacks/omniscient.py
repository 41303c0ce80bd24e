"""The literature's attacks of Byzantine workers that collude and see what every honest worker sends.

They are defined over the honest workers' vectors, here the honest rows' replies. All Byzantine workers of a step send
the same. Where the replies are complex, real and imaginary parts are coordinates of their own.
Shapes: see `scene`.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

from draco.attacks import moments
from draco.attacks.attack import AttackDeclaration
from draco.attacks.scene import Scene
from draco.declaration import Option
from draco.lazy import Tensor, torch

GRID = [2.0**i for i in range(-4, 8)]  # of factors that a line search starts from
REFINEMENTS = 8


def alie_z(workers: int, byzantine: int) -> float:
    """Return z of "a little is enough" for n workers of which f are Byzantine.

    With s = floor(n / 2 + 1) - f honest workers to win over, z is the largest number for which a normal variable is
    below it with a probability of at most (n - f - s) / (n - f). It is 0 or less where f is small.

    Source: Baruch, Baruch & Goldberg, NeurIPS 2019 (arXiv:1902.06156).

    Raises:
        ValueError: there is no such z, for example because Byzantine workers are a majority.
    """
    honest = workers - byzantine
    supporters = workers // 2 + 1 - byzantine
    if not 0 < honest - supporters < honest:
        raise ValueError(f"the formula of alie gives no z for {byzantine} Byzantine workers among {workers}")
    return NormalDist().inv_cdf((honest - supporters) / honest)


def alie(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return mean - z std of the honest replies, coordinate by coordinate; z is `magnitude`.

    A little is enough: so near the mean that it looks honest, on the same side in every coordinate. Source: Baruch,
    Baruch & Goldberg, NeurIPS 2019 (arXiv:1902.06156). The standard deviation is that of the honest rows, not an
    estimate of a population's.
    """
    return _beside(scene)(magnitude).to(reply.device)


ALIE = AttackDeclaration(
    name="alie",
    function=alie,
    text="a little is enough: mean - z std of the honest replies",
    options={
        "z": Option(
            float | None,
            None,
            "mean - z std of the honest replies is sent; null: by the paper's formula.",
            gt=0.0,
            le=1e6,
        )
    },
    strength="z",
    usual_strength=alie_z,
    informed=True,
    own=False,
    needs_honest=True,
)


def ipm(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return -epsilon times the mean of the honest replies; epsilon is `magnitude`.

    Inner product manipulation: what a rule lets through of it turns the result against the true gradient. Source: Xie,
    Koyejo & Gupta, Fall of Empires, UAI 2019 (arXiv:1903.03936).
    """
    return _against(scene)(magnitude).to(reply.device)


IPM = AttackDeclaration(
    name="ipm",
    function=ipm,
    text="inner product manipulation: -epsilon times the mean of the honest replies",
    options={"epsilon": Option(float, 0.1, "-epsilon times the mean of the honest replies is sent.", gt=0.0, le=1e30)},
    strength="epsilon",
    informed=True,
    own=False,
    needs_honest=True,
)


def alie_optimised(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return `alie` with the z that moves the job's own server furthest; see `strongest`."""
    sent = _beside(scene)
    return sent(scene.once("strongest", lambda: strongest(scene, sent))).to(reply.device)


ALIE_OPTIMISED = AttackDeclaration(
    name="alie_optimised",
    function=alie_optimised,
    text="alie with the z that moves the job's own server furthest",
    informed=True,
    own=False,
    needs_honest=True,
)


def ipm_optimised(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return `ipm` with the epsilon that moves the job's own server furthest; see `strongest`."""
    sent = _against(scene)
    return sent(scene.once("strongest", lambda: strongest(scene, sent))).to(reply.device)


IPM_OPTIMISED = AttackDeclaration(
    name="ipm_optimised",
    function=ipm_optimised,
    text="ipm with the epsilon that moves the job's own server furthest",
    informed=True,
    own=False,
    needs_honest=True,
)


def mimic(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return a copy of one honest reply, so that one worker counts f + 1 times.

    Source: Karimireddy, He & Jaggi, ICLR 2022 (arXiv:2006.09365): the one that reaches furthest, in either sense, along
    the direction in which honest workers differ most. They choose it once, over some steps; here rows are handed out
    anew at every step, so the choice is the step's own.
    """
    chosen = scene.once("chosen", lambda: moments.furthest(scene.others()))
    return scene.others()[chosen].clone().to(reply.device)


MIMIC = AttackDeclaration(
    name="mimic", function=mimic, text="a copy of one honest reply", informed=True, own=False, needs_honest=True
)


def _beside(scene: Scene) -> Callable[[float], Tensor]:
    mean, spread = scene.once("moments", lambda: moments.mean_and_spread(scene.others()))
    return lambda z: mean - z * spread


def _against(scene: Scene) -> Callable[[float], Tensor]:
    mean = scene.once("mean", lambda: scene.others().mean(0))
    return lambda epsilon: -epsilon * mean


def strongest(scene: Scene, sent: Callable[[float], Tensor]) -> float:
    """Return the factor with which `sent`, of all Byzantine workers, moves the server's result furthest.

    A grid of powers of 2, then the interval around the best is searched by thirds. Factors for which the server would
    refuse the replies do not count: a run that ends is no hidden attack. Adapting the factor to the rule it is
    sent to follows Shejwalkar & Houmansadr, Manipulating the Byzantine, NDSS 2021.
    """
    replies = scene.honest().clone()
    honest = scene.served(replies)

    def moved(factor: float) -> float:
        replies[list(scene.byzantine)] = sent(factor)
        served = scene.served(replies)
        if served is None or honest is None:
            return -1.0
        distance = float(torch.linalg.vector_norm(served - honest, dtype=torch.float64))
        return distance if distance == distance else -1.0

    found = {factor: moved(factor) for factor in GRID}
    for _ in range(REFINEMENTS // 2):
        tried = sorted(found)
        best = tried.index(max(tried, key=lambda factor: found[factor]))
        below, above = tried[max(best - 1, 0)], tried[min(best + 1, len(tried) - 1)]
        found |= {factor: moved(factor) for factor in ((below + tried[best]) / 2, (tried[best] + above) / 2)}
    return max(sorted(found), key=lambda factor: found[factor])
