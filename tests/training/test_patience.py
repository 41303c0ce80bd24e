"""How long the server waits, against workers who know its rule: 200 steps with a clock that is only counted."""

import itertools
import random
from collections.abc import Callable, Generator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted import D, Scripted
from torch import Tensor

from draco.errors import DecodeError
from draco.job import Job, parse
from draco.sampling import generator
from draco.schemes import Scheme, build
from draco.training import collect, wire
from draco.training.collect import Collector
from draco.training.patience import LEAST_S, SHARE, USUAL, Patience
from draco.training.transport import Arrival, Task

PACE = 0.25
POLL_S = 0.01
TARGET = 1.3  # times the unattacked run
Times = dict[int, float]  # worker -> seconds from its task to its reply


class Played(Scripted):
    """A cluster of which only the clock is real: every worker answers so many seconds after its task."""

    def __init__(self, scheme: Scheme, liars: Sequence[int], honest: Callable[[int, int], float]) -> None:
        vectors = torch.randn(scheme.assignment.shape[1], D, generator=generator(1, "patience"))
        loads = [torch.from_numpy(row) for row in scheme.assignment]
        super().__init__(torch.stack([scheme.encode(i, vectors[load]) for i, load in enumerate(loads)]), [])
        self.mean, self.liars, self.honest = vectors.mean(0), liars, honest
        self.busy: Times = {}  # worker -> when its late reply comes
        self.slow: Times = {}

    def exchange(self, tasks: Sequence[Task], model: Tensor, frames: Tensor) -> Generator[Arrival | None]:
        began = self.now
        self.busy = {worker: until for worker, until in self.busy.items() if until > began}
        asked = [worker for worker in range(1, self.workers + 1) if worker not in self.busy]
        coming = {w: began + self.slow.get(w, self.honest(tasks[0].step, w)) for w in asked}
        try:
            while coming:
                for worker in sorted((w for w, due in coming.items() if due <= self.now), key=coming.__getitem__):
                    del coming[worker]
                    step, row = tasks[worker - 1][:2]
                    sent = self.replies[row] * (-3 if worker in self.liars else 1)
                    yield worker, self._write(step, sent, frames[row])
                yield None
                self.now += POLL_S
        finally:
            self.busy |= coming


def job(*overrides: str, workers: int = 7) -> Job:
    text = f"{{name: a, workers: {workers}, model: lenet, data: synthetic, batch_size: 35, steps: 2, scheme: cyclic}}"
    return parse(text, "test", ["reply_timeout_s=60", *overrides])


class Cluster:
    """A server and its cluster, for one run."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, name: str, n: int, s: int, *overrides: str,
        liars: Sequence[int] = (), honest: Callable[[int, int], float] = lambda step, worker: PACE,
    ) -> None:  # fmt: skip
        self.scheme = build(name, workers=n, adversaries=s)
        self.played = Played(self.scheme, liars, honest)
        monkeypatch.setattr(collect.time, "monotonic", lambda: self.played.now)
        given = job(f"scheme.adversaries={s}", *overrides, workers=n)
        self.collector = Collector(given, self.scheme, self.played, wire.Wire(D, "float32", "none"))
        self.late: dict[int, float] = {}
        self.absent: list[set[int]] = []

    def run(self, steps: int, slow: Callable[[int, "Cluster"], Times] = lambda step, cluster: {}) -> float:
        """Return the seconds that the steps took; every one of them gives the honest mean."""
        began, draw = self.played.now, random.Random(1)
        for step in range(1, steps + 1):
            self.played.slow = slow(step, self)
            rows = draw.sample(range(self.scheme.workers), self.scheme.workers)
            tasks = [Task(step, row) for row in rows]
            got = self.collector.collect(tasks, torch.zeros(1), step, lambda part: None)
            assert torch.allclose(got.decoded.gradients.mean(0), self.played.mean, atol=1e-4)
            self.absent.append(got.absent)
            for rank, seconds in got.waited.items():
                self.late[rank] = self.late.get(rank, 0.0) + seconds
        return self.played.now - began

    def most(self, *ranks: int) -> Times:
        """Return when these workers answer who read the server's book: just before it would give them up."""
        spare = self.collector.patience.spare_s(ranks, PACE)
        return dict.fromkeys(ranks, PACE + spare - 2 * POLL_S)


def always(*ranks: int) -> Callable[[int, Cluster], Times]:
    return lambda step, cluster: cluster.most(*ranks)


def every(steps: int, *ranks: int) -> Callable[[int, Cluster], Times]:
    """Save up, then spend all at once."""
    return lambda step, cluster: cluster.most(*ranks) if step % steps == 0 else {}


def in_turns(*ranks: int) -> Callable[[int, Cluster], Times]:
    return lambda step, cluster: cluster.most(ranks[step % len(ranks)])


def too_late(*ranks: int) -> Callable[[int, Cluster], Times]:
    return lambda step, cluster: dict.fromkeys(ranks, 1000.0 * PACE if step % 7 == 0 else 1.2 * PACE)


def drawn(*ranks: int) -> Callable[[int, Cluster], Times]:
    draw = random.Random(3)
    return lambda step, cluster: {rank: cluster.most(rank)[rank] * draw.choice([0.1, 1, 1.1, 3]) for rank in ranks}


ATTACKERS = {
    "just in time": (always(2), always(2, 5), ()),
    "every second step": (every(2, 2), every(2, 2, 5), ()),
    "saving up": (every(60, 2), every(60, 2, 5), ()),
    "taking turns": (in_turns(2), in_turns(2, 5), ()),
    "beyond all patience": (too_late(2), too_late(2, 5), ()),
    "at random": (drawn(2), drawn(2, 5), ()),
    "slow beside a liar": (None, always(2), (5,)),
    "now slow beside a liar": (None, every(9, 2), (5,)),
}


@pytest.mark.parametrize("attackers", ATTACKERS)
def test_workers_who_know_the_rule_slow_200_steps_by_less_than_a_third(
    monkeypatch: pytest.MonkeyPatch, attackers: str
) -> None:
    one, two, liars = ATTACKERS[attackers]
    name = "repetition" if attackers == "just in time" else "cyclic"
    unattacked = 10 * Cluster(monkeypatch, name, 7, 1).run(20)
    for s, attack in ((1, one), (2, two)):
        if attack is not None:
            attacked = Cluster(monkeypatch, name, 7, s, liars=liars).run(200, attack)
            assert attacked <= TARGET * unattacked
            assert attacked <= unattacked * (1 + SHARE) + max(USUAL * PACE, s * LEAST_S) + 1  # as patience.py says


def test_an_attack_from_the_first_step_on_is_no_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first steps take long, and there is no usual pace yet."""
    cold: Callable[[int, int], float] = lambda step, worker: PACE * (20 if step == 1 else 1)  # noqa: E731
    unattacked = Cluster(monkeypatch, "cyclic", 5, 1, honest=cold).run(8)

    def slow(step: int, cluster: Cluster) -> Times:
        pace = cold(step, 1)
        return {2: pace + cluster.collector.patience.spare_s([2], pace) - 2 * POLL_S}

    cluster = Cluster(monkeypatch, "cyclic", 5, 1, honest=cold)
    attacked = cluster.run(8, slow)
    assert attacked <= 2 * unattacked + LEAST_S
    assert cluster.late[2] > 0.9 * (attacked - unattacked) > 0  # and the report says whom to thank


def test_one_step_costs_no_more_than_an_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, "cyclic", 7, 1)
    cluster.run(10)
    assert cluster.run(1, lambda step, _: {3: 1000.0}) == pytest.approx(PACE + USUAL * PACE, abs=3 * POLL_S)
    assert cluster.absent[-1] == {3}


def test_an_honest_pause_is_waited_out_and_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker pauses for two seconds at every 100th step."""
    pausing = Cluster(
        monkeypatch, "cyclic", 7, 1, honest=lambda step, worker: PACE + 2 * (worker == 4 and step % 100 == 0)
    )
    pausing.run(310)
    assert pausing.absent == [set()] * 310
    assert pausing.late.keys() == {4}


def test_one_that_was_left_out_is_back_when_it_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, "cyclic", 7, 1)
    cluster.run(30, lambda step, _: {3: 20 * PACE} if step == 10 else {})
    out = [step for step, absent in enumerate(cluster.absent, 1) if absent]
    assert out[0] == 10
    assert out == [*range(10, out[-1] + 1)]
    assert out[-1] < 22


def test_steps_that_all_workers_take_longer_for_cost_nobody_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores that are shared: replies come one after the other, and now and then everything stands still."""

    def honest(step: int, worker: int) -> float:
        return PACE * (worker + step) % 7 / 7 + PACE + (5.0 if step % 30 == 0 else 0.0)

    cluster = Cluster(monkeypatch, "cyclic", 7, 1, honest=honest)
    cluster.run(120)
    assert cluster.absent == [set()] * 120


def test_the_pace_is_that_of_workers_who_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So patience does not follow the slowest, where it can be done without."""
    for name, follows in (("cyclic", False), ("uncoded", True)):
        cluster = Cluster(monkeypatch, name, 7, 1)
        cluster.run(40, lambda step, cluster: {1: 2.5})
        assert (cluster.collector.patience.limit_s > 49) == follows
    assert cluster.absent == [set()] * 40  # it is needed by the uncoded scheme


def test_a_worker_that_is_needed_is_waited_for_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of seven lie and s = 2, so that nobody else can be done without."""
    cluster = Cluster(monkeypatch, "cyclic", 7, 2, liars=(1, 2))
    assert cluster.run(20) < 20 * PACE * 1.1
    assert cluster.run(1, lambda step, _: {4: 25.0}) == pytest.approx(25, abs=2 * POLL_S)
    assert cluster.absent[-1] == set()


def test_what_the_job_says_is_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, "cyclic", 7, 1, "patience_s=7")
    assert cluster.run(1, lambda step, _: {2: 100.0}) == pytest.approx(7, abs=3 * POLL_S)
    assert cluster.run(50, lambda step, cluster: {2: 6.9}) < 50 * PACE * (1 + SHARE) + 1


# --- The rule by itself ----------------------------------------------------------------------------------------------


def test_a_needed_worker_is_waited_for_twenty_times_the_usual_and_never_longer_than_the_job_says() -> None:
    patience = Patience(5, 1, 60.0)
    assert patience.limit_s == 60
    for pace, limit in ((0.1, 30), (1.0, 30), (2.0, 40), (50.0, 60)):
        for _ in range(20):
            patience.note(pace, {})
        assert patience.limit_s == limit


seconds = st.floats(0, 100)


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.lists(seconds, min_size=3, max_size=3)), max_size=60),
    st.integers(0, 4),
    st.none() | st.floats(0.1, 20),
)
def test_whoever_waits_for_whom_the_sum_is_bounded(
    steps: list[tuple[float, list[float]]], s: int, patience_s: float | None
) -> None:
    patience = Patience(3, s, 60.0, patience_s)
    spent = dict.fromkeys(range(1, 4), 0.0)
    paid, largest = 0.0, 0.0
    for pace, wishes in steps:
        waited = {r: min(wish, patience.spare_s([r], pace)) for r, wish in enumerate(wishes, 1)}
        assert all(seconds >= 0 for seconds in waited.values())
        largest = max(largest, patience_s or max(LEAST_S, USUAL * pace / max(s, 1)))
        paid += SHARE * pace / max(s, 1)
        late = patience.note(pace, waited)
        assert late.items() <= waited.items()
        for rank, wait in waited.items():
            spent[rank] += wait
    assert all(total <= largest + paid + 1e-6 for total in spent.values())


def test_schemes_spare_what_they_tolerate() -> None:
    for name, n, s in itertools.product(("cyclic", "repetition", "uncoded", "detox", "placement"), (7, 9), (0, 1, 2)):
        try:
            scheme = build(name, workers=n, adversaries=s)
        except ValueError:
            continue
        replies = Played(scheme, (), lambda step, worker: PACE).replies
        for count in range(3):
            for absent in itertools.combinations(range(n), count):
                assert scheme.spares(absent) == tolerated(scheme, replies, absent), (name, n, s, absent)


def tolerated(scheme: Scheme, replies: Tensor, absent: Sequence[int]) -> bool:
    """Decode without them and ask."""
    here = torch.tensor([row not in absent for row in range(scheme.workers)]).numpy()
    try:
        decoded = scheme.decode(replies, here, seed=3)
    except DecodeError:
        return False
    return scheme.tolerates(absent, decoded.suspects, len(decoded.gradients))
