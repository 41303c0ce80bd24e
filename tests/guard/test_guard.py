"""draco.torch.Guard in real processes over gloo: what is found, named, repaired, and whose bits the model ends with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
Seen = dict[str, Any]  # what a rank has seen, by scenario
ONCE = ["its recomputation, and another rank's, give another", "its own recomputation is used"]
LASTING = ["it recomputed it wrongly again; two other ranks agree", "rank 1 sent the right bits"]
# With redundancy 2: groups (0, 2) and (1, 3), columns (0, 1) and (2, 3); rank 3 is faulty. What is expected: the step,
# the first that was not checked before it, what was wrong, and how it was found and repaired.
FOUND = {
    "gradient_of_accumulated": [[4, 4, "gradient", *ONCE]],
    "gradient_where_no_gradient_is_zeroed": [[5, 5, "gradient", *ONCE]],
    "gradient_of_checkpointed": [[2, 2, "gradient", *ONCE]],
    "gradient_with_loss_outside": [[5, 5, "gradient", *ONCE]],
    "first_step": [[1, 1, "gradient", *ONCE]],
    "compiled": [[3, 3, "gradient", *ONCE]],
    "activation": [[3, 3, "outputs", *ONCE]],
    "not_a_number": [[3, 3, "gradient", *ONCE]],
    "lie": [[3, 3, "gradient", *ONCE]],
    "lasting_gradient": [[step, step, "gradient", *LASTING] for step in (4, 5, 6)],
    "lasting_activation": [[step, step, "outputs", *LASTING] for step in (4, 5, 6)],
    "weight": [[3, 3, "weights", "the digest of its weights is not that of 3 of 4 ranks", "rank 0 sent its own"]],
    "state": [
        [3, 3, what, "its digest is not that of 3 of 4 ranks", "rank 0 sent its own"]
        for what in ("weights", "optimizer state")
    ],
}
REFUSED = ("refused", "states_of_ranks", "input_written", "no_outputs", "hidden_loss", "unrepeatable")
OTHERS = (
    "nothing",
    "nothing_in_all_ways",
    "gradient",
    "sampled",
    "column",
    "tolerant",
    "random_state",
    "hidden",
    "own_not_a_number",
)
FOUR = [*FOUND, *OTHERS, *REFUSED]
THREE = ["inputs", "by_vote"]  # with redundancy 3


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[list[Seen]]:
    """What the ranks of each set have seen; torch is loaded once for all."""
    folder = tmp_path_factory.mktemp("ranks")
    told = [f"{world}:{','.join(names)}" for world, names in ((4, FOUR), (3, THREE), (4, ["hangs"]), (4, ["dies"]))]
    done = subprocess.run(
        [sys.executable, str(HERE / "trained.py"), str(folder), *told],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [file.read_text() for file in sorted(folder.glob("*/*.txt"))] == []
    return [
        [json.loads(file.read_text()) for file in sorted((folder / str(number)).glob("*.json"))]
        for number in range(len(told))
    ]


@pytest.fixture(scope="module")
def four(sets: list[list[Seen]]) -> list[Seen]:
    return sets[0]


def agreed(ranks: list[Seen], name: str) -> Seen:
    """Return what all ranks saw of a scenario, the same on each."""
    assert all(seen[name] == ranks[0][name] for seen in ranks), [seen[name] for seen in ranks]
    found: Seen = ranks[0][name]
    return found


def test_without_a_fault_the_bits_are_those_of_plain_ddp_on_half_the_ranks(four: list[Seen]) -> None:
    seen = agreed(four, "nothing")
    assert (seen["equal"], seen["suspects"], seen["counts"]) == (True, {}, [6, 6, 0, 0])


def test_so_they_are_in_all_ways_to_train(four: list[Seen]) -> None:
    ways = agreed(four, "nothing_in_all_ways")
    assert len(ways) == 8
    assert {name: seen["suspects"] for name, seen in ways.items() if seen["suspects"] or not seen["equal"]} == {}
    assert ways["sampled"]["counts"] == [6, 2, 0, 0]
    assert ways["summed each time"]["counts"] == [12, 12, 0, 0]


@pytest.mark.parametrize("name", FOUND)
def test_a_fault_is_found_named_and_repaired_to_the_undisturbed_bits(four: list[Seen], name: str) -> None:
    seen = agreed(four, name)
    assert seen["suspects"] == {"3": FOUND[name]}
    assert seen["equal"]


def test_a_bit_that_flips_at_a_random_step_is_repaired_by_its_own_rank(four: list[Seen]) -> None:
    seen = agreed(four, "gradient")
    assert [evidence[2:] for evidence in seen["suspects"].pop("3")] == [["gradient", *ONCE]]
    assert (seen["suspects"], seen["equal"], seen["counts"]) == ({}, True, [6, 6, 1, 1])


def test_a_fault_that_began_between_two_checks_is_named_and_taken_out_of_the_weights(four: list[Seen]) -> None:
    """It began at step 2; step 5 is checked. The ranks of its column lose its wrong gradients with their weights."""
    seen = agreed(four, "sampled")
    first, second, *later = seen["suspects"].pop("3")
    found = "it computes wrongly, and the weights of its column, ranks [2, 3], were not the others'"
    assert first == [5, 2, "weights", found, "rank 0 sent its own to the column"]
    assert second[:3] == [5, 2, "recomputation"]
    assert [evidence[:3] for evidence in later] == [[6, 6, "gradient"]], "every step is checked from then on"
    assert (seen["suspects"], seen["equal"]) == ({}, True)


def test_where_a_whole_column_differs_it_is_told_that_it_may_be_any_of_its_ranks(four: list[Seen]) -> None:
    seen = agreed(four, "column")
    assert set(seen["suspects"]) == {"2", "3"}
    for what, evidence in zip(("weights", "optimizer state"), seen["suspects"]["2"], strict=True):
        assert evidence[:3] == [4, 3, what]
        assert evidence[3].endswith("one of ranks [2, 3] gave it a wrong gradient")
    assert seen["equal"]


def test_with_a_tolerance_a_difference_above_it_is_repaired(four: list[Seen]) -> None:
    assert agreed(four, "tolerant")["suspects"] == {"3": [[3, 3, "gradient", *ONCE]]}


def test_nan_on_all_ranks_is_the_users_own(four: list[Seen]) -> None:
    assert agreed(four, "own_not_a_number")["suspects"] == {}


def test_two_replicas_that_drew_other_random_numbers_are_an_error_on_every_rank(four: list[Seen]) -> None:
    seen = agreed(four, "random_state")
    assert seen["error"] == "UnrepairedError"
    assert "use guard.sampler and guard.seed" in seen["message"]


def test_a_gradient_that_goes_wrong_behind_its_digest_is_found_in_the_weights_and_is_an_error(four: list[Seen]) -> None:
    """The sums of two columns differ, nobody computes wrongly any more, and no third column tells which is right."""
    seen = agreed(four, "hidden")
    assert seen["error"] == "UnrepairedError"
    assert seen["message"].startswith("step 4: the weights of the ranks differ")


def test_what_a_guard_cannot_take_is_refused(four: list[Seen]) -> None:
    seen = agreed(four, "refused")
    assert "wrap it, Guard(DistributedDataParallel(model))" in seen["plain"]
    assert "make it DDP(torch.compile(model))" in seen["compiled"]
    assert seen["redundancy"] == "redundancy: groups of 3 do not divide 4 ranks evenly; start 3 of them"
    assert len(seen["numbers"].splitlines()) == 4
    assert "other settings, such as learning rates" in agreed(four, "states_of_ranks")["message"]
    assert "written into before its backward pass" in agreed(four, "input_written")["message"]
    assert "returned a SimpleNamespace" in agreed(four, "no_outputs")["message"]
    assert "a part of the loss does not go through" in agreed(four, "hidden_loss")["message"]
    assert "never the same bits twice" in agreed(four, "unrepeatable")["message"]


def test_three_replicas_outvote_one_even_about_inputs(sets: list[list[Seen]]) -> None:
    vote = ["2 of 3 members agree on another", "rank 0 sent the right bits"]
    inputs, by_vote = agreed(sets[1], "inputs"), agreed(sets[1], "by_vote")
    assert inputs["suspects"] == {"2": [[3, 3, "inputs", *vote]]}
    assert by_vote["suspects"] == {"1": [[step, step, "gradient", *vote] for step in (2, 3)]}
    assert inputs["equal"]
    assert by_vote["equal"]


@pytest.mark.parametrize(("number", "name"), [(2, "hangs"), (3, "dies")])
def test_a_rank_that_does_not_come_is_named_by_all_others(sets: list[list[Seen]], number: int, name: str) -> None:
    ranks = [seen[name] for seen in sets[number] if name in seen]
    assert len(ranks) == 3
    for seen in ranks:
        assert (seen["error"], seen["ranks"]) == ("LostRankError", [3])
        assert seen["message"].startswith("step 3: a collective of the guard failed within 5 s: rank 3 (")
