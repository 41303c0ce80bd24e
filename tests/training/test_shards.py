"""Heterogeneous data: every sample has one owner, owners have classes as asked for, and keep to their own samples."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draco import data
from draco.data import shards
from draco.job import Job
from draco.runs import events
from draco.sampling import derive_seed, generator, partition_bounds
from draco.training import transport, worker
from draco.training.build import Built

Make = Callable[..., Job]
DIRICHLET = ("data.split=dirichlet", "data.alpha=0.1")


def cut(split: str, labels: torch.Tensor, workers: int, alpha: float, seed: int) -> list[torch.Tensor]:
    return shards.by_class(labels, workers) if split == "by_class" else shards.dirichlet(labels, workers, alpha, seed)


@pytest.mark.parametrize("split", ["by_class", "dirichlet"])
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    workers=st.integers(1, 12),
    log_alpha=st.floats(-6, 6),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_sample_has_one_owner_and_owners_have_equally_many(
    split: str, labels: list[int], workers: int, log_alpha: float, seed: int
) -> None:
    args = (split, torch.tensor(labels), workers, 10**log_alpha, seed)
    if len(labels) < workers:
        with pytest.raises(ValueError, match=f"{len(labels)} samples cannot be cut into {workers}"):
            cut(*args)
        return
    owned = cut(*args)
    assert sorted(torch.cat(owned).tolist()) == list(range(len(labels)))
    sizes = [len(shard) for shard in owned]
    assert sizes == [len(labels) // workers + (i < len(labels) % workers) for i in range(workers)]
    assert all(torch.equal(a, b) for a, b in zip(owned, cut(*args), strict=True))


@given(size=st.integers(1, 400), batch=st.integers(1, 400), workers=st.integers(1, 30))
def test_a_shard_holds_what_its_slice_of_a_batch_needs(size: int, batch: int, workers: int) -> None:
    """Why no job can ask for more than a worker has: data and batch are cut alike, and B <= N."""
    if workers <= batch <= size:
        for (a, b), (c, d) in zip(partition_bounds(size, workers), partition_bounds(batch, workers), strict=True):
            assert b - a >= d - c


def test_by_class_is_the_plain_sorted_cut() -> None:
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 0, 2, 1, 1])
    order = sorted(range(10), key=lambda i: (int(labels[i]), i))
    assert [shard.tolist() for shard in shards.by_class(labels, 3)] == [
        sorted(order[:4]),
        sorted(order[4:7]),
        sorted(order[7:]),
    ]


def plain_dirichlet(labels: list[int], workers: int, alpha: float, seed: int) -> list[list[int]]:
    """The slow twin: plain Dirichlet vectors, and in every turn the worker's probabilities over what is left."""
    classes = sorted(set(labels))
    high, low = divmod(derive_seed(seed, "shards"), 2**32)
    source = np.random.RandomState([high, low])
    shares = [alpha * len(classes) * labels.count(c) / len(labels) for c in classes]
    large = [[source.standard_gamma(a + 1) for a in shares] for _ in range(workers)]
    small = [[(1 - source.random_sample()) ** (1 / a) for a in shares] for _ in range(workers)]
    gammas = [[g * h for g, h in zip(*pair, strict=True)] for pair in zip(large, small, strict=True)]
    left = {c: labels.count(c) for c in classes}
    taken: list[list[int]] = [[] for _ in range(workers)]
    for turn in range(len(labels)):
        own = gammas[turn % workers]
        weights = [g if left[c] else 0.0 for g, c in zip(own, classes, strict=True)]
        probabilities = [w / sum(weights) for w in weights]
        draw, total = 1 - source.random_sample(), 0.0
        for c, probability in zip(classes, probabilities, strict=True):
            total += probability
            if draw <= total + 1e-12 and left[c]:
                break
        taken[turn % workers].append(c)
        left[c] -= 1
    piles = {c: list(source.permutation([i for i, label in enumerate(labels) if label == c])) for c in classes}
    return [sorted(int(piles[c].pop(0)) for c in sorted(own)) for own in taken]


@pytest.mark.parametrize("alpha", [0.05, 0.5, 5.0, 500.0])
@pytest.mark.parametrize(("count", "workers", "classes"), [(200, 7, 5), (90, 4, 10), (61, 60, 3)])
def test_the_dirichlet_split_is_that_of_the_slow_twin(alpha: float, count: int, workers: int, classes: int) -> None:
    labels = torch.randint(classes, (count,), generator=generator(1, "labels", count)) ** 2  # classes with gaps
    got = [shard.tolist() for shard in shards.dirichlet(labels, workers, alpha, seed=3)]
    assert got == plain_dirichlet(labels.tolist(), workers, alpha, seed=3)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_class_proportions_have_the_moments_of_the_dirichlet_distribution(alpha: float) -> None:
    """Normalised gammas against the textbook: mean p_c, variance p_c (1 - p_c) / (1 + sum of the parameters)."""
    p = np.array([0.5, 0.3, 0.2])
    logs = shards._log_gamma(np.random.RandomState(1), alpha * 3 * p, workers=20_000)
    q = np.exp(logs - logs.max(1, keepdims=True))
    q /= q.sum(1, keepdims=True)
    assert np.allclose(q.mean(0), p, atol=0.02)
    assert np.allclose(q.var(0), p * (1 - p) / (1 + 3 * alpha), rtol=0.1)


def test_proportions_so_small_that_plain_gammas_vanish_are_still_proportions() -> None:
    assert (np.random.RandomState(1).standard_gamma(1e-4, (100, 10)).max(1) == 0).any()
    logs = shards._log_gamma(np.random.RandomState(1), np.full(10, 1e-4), workers=100)
    assert np.isfinite(logs).all()


def test_small_alpha_means_few_classes_and_large_alpha_the_proportions_of_the_whole() -> None:
    labels = torch.arange(10_000) % 10
    shares = []
    for alpha in (0.01, 0.1, 1.0, 1e4):
        counts = np.array(shards.class_counts(labels, shards.dirichlet(labels, 20, alpha, 7), 10))
        assert (counts.sum(0) == 1000).all()
        shares.append((counts.max(1) / counts.sum(1)).mean())
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.7
    assert shares[-1] < 0.14


def test_seeds_differ_in_the_dirichlet_split() -> None:
    labels = torch.arange(100) % 10
    first, second = (shards.dirichlet(labels, 5, 0.5, seed) for seed in (1, 2))
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- in training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [DIRICHLET, ("data.split=by_class",)], ids=["dirichlet", "by_class"])
def test_a_worker_takes_every_sample_of_its_shard_once_an_epoch_and_no_other(
    make_job: Make, options: tuple[str, ...]
) -> None:
    job = make_job(*options, "batch_size=1003")  # slices of 201 and 200 samples; shards of 820 and 819
    owned, plan = Built(job).shards, Built(job).plan
    for partition in range(5):
        size = len(owned[partition])
        used = torch.cat([plan.indices(step, partition) for step in range(1, 10)])
        assert torch.equal(used[:size].sort().values, owned[partition])
        assert torch.equal(used[size : 2 * size].sort().values, owned[partition])
        assert not torch.equal(used[:size], used[size : 2 * size])
    assert torch.equal(plan.indices(4, 2), Built(job).plan.indices(4, 2))  # whatever was asked before


def test_samples_of_iid_jobs_are_what_they_were(make_job: Make) -> None:
    plan = Built(make_job()).plan
    from draco.sampling import batch_indices

    assert torch.equal(torch.cat([plan.indices(2, j) for j in range(5)]), batch_indices(7, 2, 15, 4096))


def test_worker_i_always_computes_on_its_own_shard(make_job: Make, train) -> None:
    seen: list[tuple[int, int]] = []

    def watching(w: worker.Worker):
        def reply(task: transport.Task, model: torch.Tensor, frame: torch.Tensor) -> int:
            seen.append((w.rank, task.row))
            return w.reply(task, model, frame)

        return reply

    train(make_job(*DIRICHLET, "steps=6"), replace=dict.fromkeys(range(1, 6), watching))
    assert seen == [(rank, rank - 1) for rank in range(1, 6)] * 6


def test_the_start_event_says_what_each_worker_owns(make_job: Make, train) -> None:
    job = make_job(*DIRICHLET, "steps=1")
    (start,) = [e for e in events.read(train(job).run / "events.jsonl") if e["event"] == "start"]
    split = data.load(job.data.name, Path(job.data.root), "train")
    expected = [[0] * 10 for _ in range(5)]
    for own, shard in zip(expected, Built(job).shards, strict=True):
        for label in split.labels[shard].tolist():
            own[label] += 1
    assert start["class_counts"] == expected
    assert start["data_summary"] == shards.summary("dirichlet", expected)
    assert start["data_summary"].startswith("dirichlet: 5 shards of 819 or 820 samples; the commonest class makes ")
    (plain,) = [e for e in events.read(train(make_job("steps=1")).run / "events.jsonl") if e["event"] == "start"]
    assert "class_counts" not in plain


def test_the_aggregate_of_shards_is_the_same_in_whatever_order_rows_stand(make_job: Make) -> None:
    """Why fixed rows are harmless without a code."""
    from draco.aggregators import AGGREGATORS

    gradients = torch.randn(9, 50, generator=generator(1, "rows"))
    turned = gradients[torch.randperm(9, generator=generator(2, "rows"))]
    for name in ("mean", "median", "trimmed_mean", "geometric_median", "krum"):
        rule = AGGREGATORS[name]
        torch.testing.assert_close(rule(gradients, f=2), rule(turned, f=2), rtol=1e-4, atol=1e-5, msg=name)
