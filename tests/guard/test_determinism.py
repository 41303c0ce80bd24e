"""What prevents equal bits is named, with what to do; equal ranks have nothing to be told."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from draco.determinism import _UNLIKE, causes, fingerprint
from draco.torch.reducer import EQUAL, OTHER, UNSTABLE, Reducer

GPU = {
    **fingerprint("cpu"),
    "device": "NVIDIA A",
    "capability": "8.0",
    "CUDA": "12.8",
    "cuDNN": "91002",
    "driver": "12080",
    "cuDNN benchmark": "False",
    "cuDNN deterministic": "True",
    "deterministic algorithms": "True",
    "TF32 in cuDNN": "False",
    "reduced precision sums": "True, True",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def test_one_rank_has_the_same_fingerprint_twice_and_leaves_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    first = fingerprint("cpu")
    assert first == fingerprint(torch.device("cpu"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(first["results"]) == 16
    assert first["threads"] == str(torch.get_num_threads())


def test_equal_ranks_have_no_causes() -> None:
    assert causes({0: fingerprint("cpu"), 1: fingerprint("cpu")}) == []
    assert causes({0: GPU, 1: GPU}) == []


@pytest.mark.parametrize("name", _UNLIKE)
def test_whatever_differs_is_named_with_its_ranks_and_a_remedy(name: str) -> None:
    found = causes({0: GPU, 1: {**GPU, name: "other"}, 2: GPU})
    told = next(sentence for sentence in found if sentence.startswith(f"{name} differs: "))
    assert "other on rank 1; " in told
    assert f"{GPU[name]} on ranks 0, 2" in told
    assert told.endswith(_UNLIKE[name][1])


def test_the_table_has_all_that_a_fingerprint_tells() -> None:
    assert set(GPU) == set(_UNLIKE)


def test_settings_that_prevent_equal_bits_of_one_rank_are_named() -> None:
    loose = {**GPU, "cuDNN benchmark": "True", "deterministic algorithms": "False", "CUBLAS_WORKSPACE_CONFIG": "unset"}
    found = causes({0: loose, 3: loose})
    assert [sentence.split(",")[0] for sentence in found] == [
        "cuDNN benchmark is on",
        "deterministic algorithms are off",
        "CUBLAS_WORKSPACE_CONFIG is not set",
    ]
    assert all("on ranks 0, 3; " in sentence for sentence in found)


def test_a_device_of_another_type_and_many_ranks_are_told_in_short() -> None:
    told = causes({**dict.fromkeys(range(12), GPU), 12: fingerprint("cpu")})[0]
    assert told.startswith("device differs: NVIDIA A on ranks 0, 1, 2, 3, 4, 5, 6, 7, ..., cpu on rank 12")


def test_threads_change_what_a_fingerprint_says() -> None:
    torch.set_num_threads(2)
    try:
        two = fingerprint("cpu")
    finally:
        torch.set_num_threads(1)
    assert any(
        sentence.startswith("threads differs: 2 on rank 0") for sentence in causes({0: two, 1: fingerprint("cpu")})
    )


@pytest.mark.parametrize(("computed", "told"), [("aa", EQUAL), ("baa", OTHER), ("aba", EQUAL), ("abc", UNSTABLE)])
def test_one_fault_in_the_first_steps_computations_is_no_lack_of_determinism(computed: str, told: int) -> None:
    first, *others = (torch.tensor([float(ord(letter))]) for letter in computed)
    again = iter(others)
    rank = SimpleNamespace(
        _measure=SimpleNamespace(tolerance=None, joined=lambda measures: []),
        _measures=[],
        _kept=[SimpleNamespace(copy=first, filled=lambda gradients: gradients)],
        _recorder=SimpleNamespace(passes=[], base=None, recompute=lambda passes, base: (None, next(again))),
    )
    assert Reducer._repeats(cast(Any, rank)) == told
