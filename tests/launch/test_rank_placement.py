"""The ranks of every node: dealt out evenly, and what a Byzantine node can do, counted as its scheme counts."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draco.errors import DecodeError, MissingError
from draco.job import Job, parse
from draco.launch.rank_placement import (
    Placement,
    hostfile,
    most_byzantine_of_a_node,
    nodes_of_workers,
    place,
    require_gpus,
    warnings,
)
from draco.launch.roster import Host, Roster
from draco.sampling import draw_rows
from draco.schemes import Scheme, build

JOB = """{name: a, workers: %d, model: lenet, data: synthetic, batch_size: 60, steps: 2,
scheme: {name: %s, adversaries: %d}}"""


def roster(workers: int, cores: int = 64) -> Roster:
    """Return a head and so many worker nodes."""
    names = ["head", *(f"worker-{i:02d}" for i in range(1, workers + 1))]
    hosts = tuple(Host(name, f"10.0.0.{10 + i}", cores) for i, name in enumerate(names))
    return Roster("dev", "10.0.0.0/24", "/opt/bin/python", "/etc/draco/ssh_config", hosts)


def job(workers: int, scheme: str = "uncoded", adversaries: int = 0, *overrides: str) -> Job:
    return parse(JOB % (workers, scheme, adversaries), "test", overrides)


def placed(nodes: int, workers: int) -> Placement:
    return place(roster(nodes), workers)


def test_the_server_sits_on_the_head_and_workers_are_dealt_out_in_turn() -> None:
    assert placed(3, 7) == {"head": (0,), "worker-01": (1, 4, 7), "worker-02": (2, 5), "worker-03": (3, 6)}


def test_a_head_alone_hosts_everything() -> None:
    assert placed(0, 3) == {"head": (0, 1, 2, 3)}


def test_a_node_without_a_rank_is_in_the_placement_and_in_no_file() -> None:
    nodes = roster(3)
    made = place(nodes, 2)
    assert made["worker-03"] == ()
    assert "10.0.0.13" not in hostfile(nodes, made)


@settings(max_examples=30)
@given(nodes=st.integers(0, 9), workers=st.integers(1, 40))
def test_every_rank_has_one_node_and_nodes_differ_by_one_rank_at_most(nodes: int, workers: int) -> None:
    made = placed(nodes, workers)
    assert sorted(rank for ranks in made.values() for rank in ranks) == list(range(workers + 1))
    assert 0 in made["head"]
    counts = [len(ranks) for name, ranks in made.items() if name != "head"] or [workers]
    assert max(counts) - min(counts) <= 1


@settings(max_examples=30)
@given(nodes=st.integers(2, 9), workers=st.integers(2, 40))
def test_neighbouring_workers_sit_on_different_nodes(nodes: int, workers: int) -> None:
    of = nodes_of_workers(placed(nodes, workers))
    assert len(of) == workers
    assert all(a != b for a, b in itertools.pairwise(of))


def test_the_nodes_of_workers_leave_the_server_out() -> None:
    assert nodes_of_workers(placed(2, 3)) == ["worker-01", "worker-02", "worker-01"]
    assert nodes_of_workers(placed(0, 2)) == ["head", "head"]


def test_the_hostfile_has_a_line_for_every_rank_in_order() -> None:
    nodes = roster(2)
    assert hostfile(nodes, place(nodes, 3)) == "10.0.0.10\n10.0.0.11\n10.0.0.12\n10.0.0.11\n"


def test_ranks_stay_in_order_beyond_the_ninth() -> None:
    nodes = roster(11)
    lines = hostfile(nodes, place(nodes, 11)).splitlines()
    assert lines == [node.address for node in nodes.nodes]


# What one Byzantine node can do


def worst(scheme: Scheme, nodes: Sequence[str], steps: int) -> set[int]:
    """Return the most members of one node in one group, as it is at each of some steps."""
    groups = scheme.groups()
    assert groups
    found = set()
    for step in range(1, steps + 1):
        rows = draw_rows(b"secret", step, scheme.workers, groups, nodes)
        met = Counter((node, groups[row]) for node, row in zip(nodes, rows, strict=True))
        found.add(max(met.values()))
    return found


@pytest.mark.parametrize("nodes", range(6))
@pytest.mark.parametrize(("s", "r"), [(1, 3), (1, 4), (2, 5)])
def test_byzantine_workers_in_a_group_are_counted_as_the_server_spreads_them(s: int, r: int, nodes: int) -> None:
    for n in range(r, 3 * r + 2):  # from one group to three, with and without workers left over
        scheme = build("repetition", workers=n, adversaries=s, redundancy=r)
        made = placed(nodes, n)
        counted = most_byzantine_of_a_node(job(n, "repetition", s, f"scheme.redundancy={r}"), made)
        assert counted
        assert worst(scheme, nodes_of_workers(made), steps=4) == {counted[0]}


def test_in_a_single_group_every_worker_of_a_node_counts() -> None:
    counted = most_byzantine_of_a_node(job(5, "repetition", 2), placed(2, 5))
    assert counted == (3, 2)


def tolerates(scheme: Scheme, byzantine: int) -> bool:
    """Say whether the result is right though the first members of group 0 send the same wrong gradient."""
    gradients = torch.arange(1.0, 1 + scheme.assignment.shape[1])[:, None]
    replies = torch.stack(
        [scheme.encode(i, gradients[torch.from_numpy(row)]) for i, row in enumerate(scheme.assignment)]
    )
    groups = scheme.groups()
    assert groups
    replies[[row for row, group in enumerate(groups) if group == 0][:byzantine]] = -100.0
    try:
        return torch.equal(scheme.decode(replies).gradients, gradients)
    except DecodeError:
        return False


@pytest.mark.parametrize(
    ("n", "s", "r"),
    [(9, 1, 3), (12, 1, 4), (10, 2, 5), (10, 1, 5)],
)
def test_a_repetition_job_tolerates_in_a_group_what_its_vote_tolerates(n: int, s: int, r: int) -> None:
    counted = most_byzantine_of_a_node(job(n, "repetition", s, f"scheme.redundancy={r}"), placed(3, n))
    assert counted
    scheme = build("repetition", workers=n, adversaries=s, redundancy=r)
    assert tolerates(scheme, counted[1])
    assert not tolerates(scheme, counted[1] + 1)


@pytest.mark.parametrize("scheme", ["cyclic", "cyclic_dft"])
def test_a_cyclic_code_counts_workers(scheme: str) -> None:
    assert most_byzantine_of_a_node(job(9, scheme, 2), placed(4, 9)) == (3, 2)
    assert most_byzantine_of_a_node(job(9, scheme, 2), placed(9, 9)) == (1, 2)


def test_a_robust_aggregator_counts_workers_against_f() -> None:
    assert most_byzantine_of_a_node(job(9, "uncoded", 2, "aggregator=median"), placed(3, 9)) == (3, 2)
    assert most_byzantine_of_a_node(job(9, "uncoded", 0, "aggregator={name: krum, f: 3}"), placed(3, 9)) == (3, 3)


@pytest.mark.parametrize(
    ("scheme", "overrides"),
    [
        ("uncoded", ()),
        ("cyclic", ()),
        ("uncoded", ("aggregator=median",)),
        ("repetition", ()),
    ],
)
def test_a_job_that_tolerates_none_promises_nothing(scheme: str, overrides: tuple[str, ...]) -> None:
    assert most_byzantine_of_a_node(job(4, scheme, 0, *overrides), placed(2, 4)) is None
    assert warnings(job(4, scheme, 0, *overrides), roster(2), placed(2, 4)) == []


# What the user is told


def test_nothing_is_said_where_a_byzantine_node_is_tolerated() -> None:
    for n, scheme, s, nodes in [(9, "repetition", 1, 3), (9, "cyclic", 3, 3), (3, "cyclic", 1, 3)]:
        assert warnings(job(n, scheme, s), roster(nodes), placed(nodes, n)) == []


def test_a_node_with_more_byzantine_workers_than_are_tolerated_is_named_with_its_ranks() -> None:
    (said,) = warnings(job(7, "cyclic", 1), roster(3), placed(3, 7))
    assert said.startswith(
        "worker-01 hosts ranks 1, 4, 7: if that node is Byzantine, so are 3 workers, and the job tolerates 1; "
    )


def test_for_repetition_the_warning_speaks_of_one_group() -> None:
    (said,) = warnings(job(9, "repetition", 1), roster(2), placed(2, 9))
    assert said.startswith(
        "worker-01 hosts ranks 1, 3, 5, 7, 9: if that node is Byzantine, so are 2 workers in one group, and "
    )


@pytest.mark.parametrize(
    ("n", "scheme", "s", "nodes"),
    [
        (7, "cyclic", 1, 3),
        (9, "repetition", 1, 2),
        (4, "cyclic", 1, 2),
        (10, "cyclic", 2, 1),
    ],
)
def test_the_warning_recommends_a_job_that_tolerates_a_whole_node(n: int, scheme: str, s: int, nodes: int) -> None:
    (said,) = warnings(job(n, scheme, s), roster(nodes), placed(nodes, n))
    advised = re.search(r"scheme\.adversaries=(\d+)", said)
    if advised:
        counted = most_byzantine_of_a_node(job(n, scheme, int(advised[1])), placed(nodes, n))
        assert counted
        assert counted[0] <= counted[1]


def test_oversubscribed_nodes_are_named_with_ranks_threads_and_cores() -> None:
    nodes = roster(2, cores=2)
    assert warnings(job(6), nodes, place(nodes, 6)) == [
        "worker-01 is oversubscribed: 3 ranks on 2 cores",
        "worker-02 is oversubscribed: 3 ranks on 2 cores",
    ]
    head, *_, last = warnings(job(4, "uncoded", 0, "threads=4"), nodes, place(nodes, 4))
    assert re.fullmatch("head is oversubscribed: 1 ranks? of 4 threads each on 2 cores", head)
    assert last == "worker-02 is oversubscribed: 2 ranks of 4 threads each on 2 cores"


# GPUs


def with_gpus(*gpus: int | None) -> Roster:
    """Return a head, the first, and worker nodes with so many GPUs each."""
    nodes = roster(len(gpus) - 1)
    hosts = zip(nodes.nodes, gpus, strict=True)
    return nodes._replace(nodes=tuple(host._replace(gpus=count) for host, count in hosts))


@settings(max_examples=30)
@given(gpus=st.lists(st.integers(0, 8), min_size=1, max_size=5).filter(any), workers=st.integers(1, 40))
def test_on_gpus_each_has_as_many_workers_as_the_others_and_other_nodes_have_none(
    gpus: list[int], workers: int
) -> None:
    made = place(with_gpus(1, *gpus), workers, "cuda")
    assert sorted(rank for ranks in made.values() for rank in ranks) == list(range(workers + 1))
    assert made["head"] == (0,)
    each = workers / sum(gpus)
    for count, (name, ranks) in zip(gpus, list(made.items())[1:], strict=True):
        assert int(each) * count <= len(ranks) <= -(-workers // sum(gpus)) * count, name


def test_a_node_with_more_gpus_has_more_turns() -> None:
    made = place(with_gpus(0, 1, 4), 5, "cuda")
    assert made == {"head": (0,), "worker-01": (1,), "worker-02": (2, 3, 4, 5)}
    assert hostfile(with_gpus(0, 1, 4), made).split() == ["10.0.0.10", "10.0.0.11", *["10.0.0.12"] * 4]


@pytest.mark.parametrize("gpus", [(None, None, None), (0, 0, 0), (1, 2, 2)], ids=["unknown", "none", "equal"])
def test_where_nodes_are_alike_gpus_change_nothing(gpus: tuple[int | None, ...]) -> None:
    assert place(with_gpus(*gpus), 7, "cuda") == place(with_gpus(*gpus), 7)


def test_workers_that_share_gpus_are_counted() -> None:
    nodes, asked = with_gpus(1, 1, 2), job(6, "uncoded", 0, "device=cuda")
    assert warnings(asked, nodes, place(nodes, 6, "cuda")) == [
        "worker-01: 2 workers share 1 GPU", "worker-02: 4 workers share 2 GPUs",
    ]  # fmt: skip
    assert warnings(job(6), nodes, place(nodes, 6)) == []


def test_a_server_that_shares_its_gpu_with_workers_is_told() -> None:
    alone, asked = with_gpus(1), job(2, "uncoded", 0, "device=cuda")
    made = place(alone, 2, "cuda")
    assert warnings(asked, alone, made) == ["head: the server and 2 workers share 1 GPU"]
    on_cpu = job(2, "uncoded", 0, "device=cuda", "server_device=cpu")
    assert warnings(on_cpu, alone, made) == ["head: 2 workers share 1 GPU"]
    only_server = job(2, "uncoded", 0, "server_device=cuda")
    assert warnings(only_server, with_gpus(1, 0), place(with_gpus(1, 0), 2)) == []
    assert warnings(job(8, "uncoded", 0, "device=cuda"), with_gpus(8, 8), place(with_gpus(8, 8), 8, "cuda")) == []


def test_a_job_for_gpus_needs_one_at_least_where_they_were_counted() -> None:
    asked = job(2, "uncoded", 0, "device=cuda")
    with pytest.raises(MissingError, match=r"^worker-01, worker-02: no node of workers has a GPU"):
        require_gpus(asked, with_gpus(1, 0, 0))
    with pytest.raises(MissingError, match=r"^head: no node of workers has a GPU"):
        require_gpus(asked, with_gpus(0))
    for nodes in (with_gpus(0, 0, 1), with_gpus(1), with_gpus(0, None, None)):
        require_gpus(asked, nodes)
    require_gpus(job(2), with_gpus(0, 0, 0))


def test_a_server_on_a_gpu_needs_one_at_the_head_and_by_itself_it_takes_what_is_there() -> None:
    for words in (["device=cuda"], ["device=cuda", "server_device=cpu"]):
        require_gpus(job(2, "uncoded", 0, *words), with_gpus(0, 1, 1))
    for words in (["server_device=cuda"], ["device=cuda", "server_device=cuda"]):
        with pytest.raises(MissingError, match=r"^head: has no GPU, and the job says server_device: cuda; "):
            require_gpus(job(2, "uncoded", 0, *words), with_gpus(0, 1, 1))
        require_gpus(job(2, "uncoded", 0, *words), with_gpus(None, 1, 1))  # nobody counted: torch is asked
