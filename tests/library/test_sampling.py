"""Sampling: every sample once per epoch, keyed randomness, balanced partitions."""

import hashlib
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draco.sampling import batch_indices, derive_seed, draw_rows, generator, partition_bounds


def take(seed: int, steps: int, batch_size: int, size: int) -> torch.Tensor:
    return torch.cat([batch_indices(seed, step, batch_size, size) for step in range(1, steps + 1)])


@given(seed=st.integers(0, 2**63), batch_size=st.integers(1, 40), size=st.integers(1, 25), epochs=st.integers(1, 4))
def test_every_sample_is_used_exactly_once_per_epoch(seed: int, batch_size: int, size: int, epochs: int) -> None:
    steps = -(-epochs * size // batch_size)
    used = take(seed, steps, batch_size, size)
    for epoch in range(epochs):
        assert used[epoch * size : (epoch + 1) * size].sort().values.tolist() == list(range(size))


def test_a_batch_may_hold_the_end_of_one_epoch_and_the_start_of_the_next() -> None:
    batches = [batch_indices(7, step, 4, 10) for step in range(1, 6)]  # 20 samples: two epochs in five steps
    assert all(batch.shape == (4,) and batch.dtype == torch.int64 for batch in batches)
    straddling = batches[2]
    first, second = torch.cat([*batches[:2], straddling[:2]]), torch.cat([straddling[2:], *batches[3:]])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(10))
    assert not torch.equal(first, second)  # each epoch has an order of its own


def test_a_batch_larger_than_the_data_set_goes_round_several_times() -> None:
    counts = batch_indices(7, 1, 23, 10).bincount(minlength=10)
    assert counts.sum() == 23
    assert counts.min() >= 2
    assert counts.max() <= 3


def test_a_step_does_not_depend_on_the_steps_before_it() -> None:
    in_order = [batch_indices(7, step, 6, 20) for step in range(1, 12)]
    for step in (11, 3, 7, 1):
        assert torch.equal(batch_indices(7, step, 6, 20), in_order[step - 1])


def test_callers_cannot_spoil_the_remembered_order() -> None:
    before = batch_indices(7, 1, 10, 10).clone()
    batch_indices(7, 1, 10, 10).zero_()
    assert torch.equal(batch_indices(7, 1, 10, 10), before)


def test_global_random_state_is_neither_read_nor_changed() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = (batch_indices(3, 1, 8, 50), torch.rand(3, generator=generator(3, "dropout", 1)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    torch.rand(17)
    second = (batch_indices(3, 1, 8, 50), torch.rand(3, generator=generator(3, "dropout", 1)))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_different_seeds_epochs_and_steps_give_different_samples() -> None:
    assert not torch.equal(batch_indices(1, 1, 20, 50), batch_indices(2, 1, 20, 50))
    assert not torch.equal(batch_indices(1, 1, 50, 50), batch_indices(1, 2, 50, 50))


def test_every_part_of_a_key_counts() -> None:
    keys = [(1, "a", 1), (1, "a", 2), (1, "b", 1), (2, "a", 1), (1, "a"), (1, "a", 1, 0), (1, "a", 11), (11, "a", 1)]
    assert len({derive_seed(seed, *rest) for seed, *rest in keys}) == len(keys)
    # sums of seed and step, the common mistake, collide here
    assert derive_seed(1, "samples", 2) != derive_seed(2, "samples", 1)
    assert len({derive_seed(seed, step) for seed in range(100) for step in range(100)}) == 10_000


def test_keys_that_share_characters_do_not_collide() -> None:
    assert derive_seed(1, 23) != derive_seed(12, 3) != derive_seed(123)
    assert derive_seed(b"\x01", "a") == derive_seed(b"\x01", "a") != derive_seed(b"\x02", "a")


def test_seeds_are_the_documented_hash_and_fit_into_63_bits() -> None:
    digest = hashlib.sha256(b"7/samples/0").digest()
    assert derive_seed(7, "samples", 0) == int.from_bytes(digest[:8], "big") >> 1
    assert all(0 <= derive_seed(7, step) < 2**63 for step in range(1000))


def test_generators_are_fresh_and_keyed() -> None:
    first, again, other = generator(7, "noise", 1), generator(7, "noise", 1), generator(7, "noise", 2)
    draw = torch.rand(5, generator=first)
    assert torch.equal(draw, torch.rand(5, generator=again))
    assert not torch.equal(draw, torch.rand(5, generator=other))
    assert first.device.type == "cpu"


@given(batch_size=st.integers(1, 500), partitions=st.integers(1, 60))
def test_partitions_are_contiguous_disjoint_balanced_and_cover_the_batch(batch_size: int, partitions: int) -> None:
    if batch_size < partitions:
        with pytest.raises(ValueError, match=f"{batch_size} samples cannot be cut into {partitions} partitions"):
            partition_bounds(batch_size, partitions)
        return
    bounds = partition_bounds(batch_size, partitions)
    assert len(bounds) == partitions
    assert [index for start, stop in bounds for index in range(start, stop)] == list(range(batch_size))
    sizes = [stop - start for start, stop in bounds]
    assert sum(sizes) == batch_size
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_partitions_of_a_step_share_no_sample_within_an_epoch() -> None:
    indices = batch_indices(7, 2, 17, 60)
    parts = [set(indices[start:stop].tolist()) for start, stop in partition_bounds(17, 5)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 17


# Rows of the code


def test_rows_without_groups_or_nodes_are_the_plain_permutation_of_the_step() -> None:
    for step in (1, 2):
        expected = torch.randperm(6, generator=generator(b"secret", "rows", step)).tolist()
        assert draw_rows(b"secret", step, 6) == expected
        assert draw_rows(b"secret", step, 6, groups=[0, 1] * 3) == expected
        assert draw_rows(b"secret", step, 6, nodes=["a", "b"] * 3) == expected


@given(data=st.data(), workers=st.integers(1, 24), step=st.integers(1, 5))
def test_the_workers_of_a_node_are_spread_evenly_over_the_groups(data: st.DataObject, workers: int, step: int) -> None:
    count = data.draw(st.integers(1, workers), label="groups")
    groups = [row % count for row in range(workers)]
    nodes = data.draw(st.lists(st.sampled_from("abcd"), min_size=workers, max_size=workers), label="nodes")
    rows = draw_rows(b"secret", step, workers, groups, nodes)
    assert sorted(rows) == list(range(workers))
    members = Counter((node, groups[row]) for node, row in zip(nodes, rows, strict=True))
    held = Counter(nodes)
    assert all(most <= -(-held[node] // count) for (node, _), most in members.items())


def test_rows_of_unequal_nodes_and_groups_are_still_a_permutation() -> None:
    """One node holds five of seven workers, and one group has a member more than the others."""
    nodes, groups = ["a", "b", "a", "a", "c", "a", "a"], [0, 1, 2, 0, 1, 2, 0]
    for step in range(1, 9):
        rows = draw_rows(b"secret", step, 7, groups, nodes)
        assert sorted(rows) == list(range(7))
        assert max(Counter(groups[row] for row, node in zip(rows, nodes, strict=True) if node == "a").values()) == 2


def test_rows_spread_over_nodes_differ_between_steps_and_secrets() -> None:
    nodes, groups = list("abcdef") * 3, [0, 1, 2] * 6
    drawn = {tuple(draw_rows(secret, step, 18, groups, nodes)) for secret in (b"x", b"y") for step in range(1, 6)}
    assert len(drawn) == 10
    assert draw_rows(b"x", 1, 18, groups, nodes) in map(list, drawn)


@pytest.mark.parametrize(
    "nodes",
    [
        "abcdef",
        "abcabc",
        "aaaaaa",
        "aaaabb",
        "aaaaab",
    ],
)
def test_every_worker_gets_into_every_group_equally_often(nodes: str) -> None:
    groups = [0, 1, 2, 0, 1, 2]
    met = Counter(
        (worker, groups[row])
        for step in range(1, 301)
        for worker, row in enumerate(draw_rows(b"secret", step, 6, groups, list(nodes)))
    )
    assert len(met) == 18
    assert all(65 <= times <= 135 for times in met.values())  # 100 each on average, within four standard deviations


def test_who_shares_a_group_with_whom_changes() -> None:
    """Else a Byzantine worker would learn whose votes it can break."""
    nodes, groups = ["a", "b", "c"] * 2, [0, 1] * 3
    pairs = {
        frozenset(worker for worker, row in enumerate(draw_rows(b"secret", step, 6, groups, nodes)) if not groups[row])
        for step in range(1, 51)
    }
    assert len(pairs) == 8  # one worker of each node: every choice
