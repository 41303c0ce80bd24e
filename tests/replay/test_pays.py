"""Whether replays pay: the arithmetic by hand, and one measurement."""

import time
from itertools import count

import pytest
import torch

from draco.replay.pays import Costs, advise, measure

WIDE = Costs(gradient_s=1.0, replay_s=0.2, numbers=10_000_000, transcript=20_000_000)


def test_the_figures_are_those_of_a_computation_by_hand() -> None:
    """10 pairs: 10 * 80 MB at 1 GB/s are 0.8 s, replays 2 s; vectors alone would take 0.4 s."""
    advice = advise(WIDE, pairs=10, adversaries=2, bytes_a_second=1e9)
    assert advice.share == pytest.approx(0.2)
    assert advice.transcript_bytes == 80_000_000
    assert advice.server_s == pytest.approx(2.8)
    assert advice.copies == pytest.approx(3.4)  # 1 s + 2.8 s = 3.4 * 1 s + 0.4 s
    assert not advice.pays
    assert "80 MB" in advice.sentence
    assert "2.8 s" in advice.sentence
    assert "3.4 copies" in advice.sentence


def test_a_sample_and_drawn_verifiers_are_counted_by_hand_too() -> None:
    """A tenth of 2.8 s and a digest of 0.05 s; of 2 verifiers transcripts of 0.8 s three times, and 2 replays."""
    advice = advise(WIDE._replace(digest_s=0.05), pairs=10, adversaries=2, bytes_a_second=1e9)
    assert advice.sampled == pytest.approx(1.33)
    assert advice.drawn == pytest.approx(1 + 2.4 + 0.4)
    assert "sample: 0.1 would take as long as 1.3, verifiers: 2 as 3.8" in advice.sentence
    given = advise(WIDE, pairs=10, adversaries=2, bytes_a_second=1e9, sample=0.5, verifiers=1)
    assert given.sampled == pytest.approx(2.4)
    assert given.drawn == pytest.approx(1 + 1.6 + 0.2)


def test_it_says_which_form_pays() -> None:
    fast = advise(WIDE, pairs=10, adversaries=2, bytes_a_second=1e10)
    assert fast.drawn < 3 < fast.copies
    assert fast.sentence.endswith("So verifiers: 2 pays: 3 copies are needed without it")
    assert not fast.pays
    few = advise(WIDE, pairs=2, adversaries=2, bytes_a_second=1e9)
    assert few.copies < min(few.drawn, 3)
    assert few.sentence.endswith("So checked pays: 3 copies are needed without it")


@pytest.mark.parametrize(("adversaries", "pays"), [(0, False), (2, False), (3, True), (9, True)])
def test_it_pays_from_the_number_of_copies_on_that_take_longer(adversaries: int, pays: bool) -> None:
    advice = advise(WIDE, pairs=10, adversaries=adversaries, bytes_a_second=1e9)
    assert advice.pays == pays
    assert advice.sentence.endswith("without it" if pays else "no longer")


def test_more_pairs_and_a_slower_network_make_it_pay_less() -> None:
    few = advise(WIDE, pairs=2, adversaries=2)
    assert few.pays
    assert few.copies < advise(WIDE, pairs=20, adversaries=2).copies
    assert few.copies < advise(WIDE, pairs=2, adversaries=2, bytes_a_second=1e8).copies


def test_transcripts_shorter_than_the_vector_are_no_less_than_one_copy() -> None:
    """Nothing is quicker than to compute once."""
    assert advise(Costs(1.0, 0.0, 1000, 0), pairs=5, adversaries=1).copies == 1.0


@pytest.mark.parametrize("bad", [{"pairs": 0}, {"adversaries": -1}, {"bytes_a_second": 0.0}])
def test_numbers_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least 1 pair"):
        advise(WIDE, **{"pairs": 1, "adversaries": 1, **bad})  # type: ignore[arg-type]


def test_times_are_the_medians_of_the_given_clock() -> None:
    a = torch.randn(256, 256)
    ticks = count()
    costs = measure(lambda: a @ a, clock=lambda: float(next(ticks)), generator=torch.Generator(), numbers=7)
    assert costs == Costs(1.0, 1.0, 7, 256 * 256, 1.0)


def test_computations_that_change_products_in_place_are_measured_too() -> None:
    a = torch.randn(256, 256)
    costs = measure(lambda: (a @ a).relu_(), clock=time.thread_time, generator=torch.Generator(), numbers=1)
    assert costs.transcript == 256 * 256


def test_a_replay_of_wide_products_takes_less_than_they_do() -> None:
    a = torch.randn(1024, 1024)
    costs = measure(lambda: a @ a, clock=time.thread_time, generator=torch.Generator(), numbers=1024 * 1024)
    assert costs.replay_s < costs.gradient_s
