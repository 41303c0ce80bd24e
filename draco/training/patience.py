"""How long the server waits: for workers that are needed, and for those that a step can be taken without.

The *pace* of a step is the time until so many replies had come that the scheme could have done without the rest. It
is an order statistic of the replies: with at most s Byzantine workers it is never later than the last honest reply,
whatever the Byzantine ones do, and the slowest worker has no part in it.

Every worker that can be done without has an allowance of waiting, a leaky bucket (Turner, IEEE Communications Magazine
24(10), 1986). It is spent on the time for which the server waits for that worker beyond the pace. Every step pays a
share of the pace back, late or not. Whoever is late again and again is soon waited for no longer than that share. Who
was late once, or is a little slower than the others, is waited for in full.

So s Byzantine workers, who know the rule, who take turns or save up, cost N steps of pace P no more than

    N * SHARE * P  +  max(USUAL * P, s * LEAST_S)

seconds (s = 1 at least; with `patience_s` the last term is s * patience_s). In one step it is at most an allowance.
This file knows no clock: times are given in seconds.
"""

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

# All allowances of s workers together are so many times the pace, and each is at least so many seconds.
USUAL, LEAST_S = 10.0, 2.0
SHARE = 0.1  # of the pace is what a step pays back to s workers together
_LOST, _LOST_LEAST_S = 20.0, 30.0  # the same for a worker that is needed
_FIRST, _RECENT = 5, 20  # steps before which the usual pace is not known, and over which it is the median


class Allowance:
    """What is left to one worker of the time that it may be waited for."""

    def __init__(self) -> None:
        self._spent_s = 0.0

    def left_s(self, whole_s: float) -> float:
        """Return how long it may be waited for now, if an unspent allowance is `whole_s`."""
        return max(whole_s - self._spent_s, 0.0)

    def step(self, waited_s: float, paid_s: float, whole_s: float) -> None:
        """Count a step in which it was waited for, of an allowance that is `whole_s`, and `paid_s` is paid back."""
        self._spent_s = max(self._spent_s + min(waited_s, self.left_s(whole_s)) - paid_s, 0.0)


class Patience:
    """The waiting of a run's steps, one after the other."""

    def __init__(self, workers: int, adversaries: int, limit_s: float, patience_s: float | None = None) -> None:
        """`limit_s`: the most that a step may take; `patience_s`: waited for whom it can do without; None: by the pace.

        The job's `reply_timeout_s` and `patience_s`.
        """
        self._sharing = max(adversaries, 1)
        self._most_s, self._patience_s = limit_s, patience_s
        self._paces: deque[float] = deque(maxlen=_RECENT)
        self._allowances = {rank: Allowance() for rank in range(1, workers + 1)}

    @property
    def limit_s(self) -> float:
        """Seconds after which a worker that is needed is lost."""
        if len(self._paces) < _FIRST:
            return self._most_s
        return min(self._most_s, max(_LOST_LEAST_S, _LOST * median(self._paces)))

    def spare_s(self, ranks: Iterable[int], pace_s: float) -> float:
        """Return for how many seconds beyond this step's pace workers are waited for of whom none is needed."""
        whole = self._whole_s(pace_s)
        rest = math.inf if self._patience_s is None else max(self._patience_s - pace_s, 0.0)
        return min(max((self._allowances[rank].left_s(whole) for rank in ranks), default=0.0), rest)

    def note(self, pace_s: float, waited_s: dict[int, float]) -> dict[int, float]:
        """Count a step: its pace, and for how long workers were waited for beyond it; return those that were late.

        A worker is late if it was waited for longer than a step pays back.
        """
        whole, paid = self._whole_s(pace_s), self.paid_s(pace_s)
        for rank, allowance in self._allowances.items():
            allowance.step(waited_s.get(rank, 0.0), paid, whole)
        self._paces.append(pace_s)
        return {rank: seconds for rank, seconds in waited_s.items() if seconds > paid}

    def paid_s(self, pace_s: float) -> float:
        """Return the seconds that a step of this pace pays back to every worker."""
        return SHARE * self._usual_s(pace_s) / self._sharing

    def _usual_s(self, pace_s: float) -> float:
        """Return the lesser of this step's pace and the usual one: a slow first step, or a pause, makes nobody rich."""
        return min(pace_s, median(self._paces)) if self._paces else pace_s

    def _whole_s(self, pace_s: float) -> float:
        """Return an unspent allowance. In the first steps, which may take long, it is no more than the step again."""
        if self._patience_s is not None:
            return self._patience_s
        times = 1.0 if len(self._paces) < _FIRST else USUAL
        return max(LEAST_S, times * self._usual_s(pace_s) / self._sharing)
