"""What processes say that they see, and what follows where they see different things."""

from typing import Any

import pytest
import torch
from tasks.broken_tasks import Right
from torch import nn

from draco.tasks.agreement import advice, compare, differing, digest_of, disagreeing, verdict
from draco.tasks.building import task_model, task_samples


def seen(task: Right | None = None, seed: int = 1) -> str:
    task = task or Right()
    return digest_of(task, seed, task_samples(task, "train", seed), task_model(task, seed))


class Fewer(Right):
    def samples(self, split: str) -> Any:
        return tuple(rows[:-1] for rows in super().samples(split))


class OtherLast(Right):
    def samples(self, split: str) -> Any:
        x, y = super().samples(split)
        return x.index_fill(0, torch.tensor([len(x) - 1]), 0.0), y


class Frozen(Right):
    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def model(self) -> nn.Module:
        model = super().model()
        nn.init.constant_(model[0].weight, self.value)
        model[0].weight.requires_grad_(False)
        return model


def test_equal_processes_say_the_same() -> None:
    assert seen() == seen()
    assert len(seen()) < 160  # a greeting has 1024 bytes


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        (Right(), Fewer(), ["count", "samples"]),
        (Right(), OtherLast(), ["samples"]),
        (Frozen(1.0), Frozen(2.0), ["frozen"]),
    ],
)
def test_what_differs_is_named(one: Right, other: Right, what: list[str]) -> None:
    assert differing(seen(one), seen(other)) == what


def test_another_seed_sees_other_weights_only_where_nothing_else_depends_on_it() -> None:
    assert differing(seen(seed=1), seen(seed=2)) == ["samples", "weights", "random"]


def test_up_to_s_workers_are_told_and_more_stop_the_run() -> None:
    own, wrong = seen(), seen(OtherLast())
    greetings = {1: own, 2: wrong, 3: own, 4: "", 5: own}
    sentences, begins = verdict(own, greetings, adversaries=1)
    assert (sentences, begins) == (["worker 2 sees other training samples than the server"], True)
    assert verdict(own, greetings | {5: wrong}, adversaries=1) == (
        ["workers 2, 5 see other training samples than the server"],
        False,
    )
    assert verdict(own, greetings, adversaries=0)[1] is False


@pytest.mark.parametrize(
    "said", ["", "=", "count", "count=" + "9" * 900, "a=b " * 200, "count=1 count=2", "\x00 random"]
)
def test_what_a_liar_says_counts_once_and_breaks_nothing(said: str) -> None:
    own = seen()
    sentences, begins = verdict(own, {1: own, 2: said, 3: own}, adversaries=1)
    assert begins
    assert len(sentences) == (said != "")
    assert disagreeing(own, {2: said}) == ([2] if said else [])


def test_other_initial_weights_alone_stop_nothing() -> None:
    own = seen()
    said = own.replace(own.split()[3], "weights=0")
    assert compare(own, {1: said}) == ["worker 1 sees other initial weights than the server"]
    assert disagreeing(own, {1: said}) == []


def test_the_advice_follows_from_who_agrees_with_whom() -> None:
    own, other = seen(), seen(OtherLast())
    assert "all workers see the same" in advice(own, {1: other, 2: other})
    assert "no two of them see the same" in advice(own, {1: other, 2: seen(Fewer())})
    assert advice(own, {1: other, 2: own}) == "look at the files and the packages of their machines"
