"""Peers' aggregators import beside Draco's versions of torch and numpy, without the rest of those packages."""

import importlib.util
import sys

import pytest
import torch

from benchmarks import peers
from draco.errors import MissingError


def test_the_peers_versions_are_those_that_are_measured() -> None:
    from importlib.metadata import version

    assert {name: version(name) for name in peers.VERSIONS} == peers.VERSIONS


def test_peers_load_without_what_their_aggregators_do_not_use() -> None:
    other = {"seaborn", "byzfl.benchmark", "byzfl.fed_framework"} & set(sys.modules)  # of another test
    rows = torch.tensor([[1.0, 5.0], [2.0, 9.0], [9.0, 6.0]])
    assert peers.load("byzfl.aggregators").Median()(rows).tolist() == [2.0, 6.0]
    assert peers.load("byzfl.attacks").SignFlipping()(rows[:, :1]).tolist() == [-4.0]
    median = peers.load("byzpy.aggregators.coordinate_wise").CoordinateWiseMedian()
    assert median.aggregate(list(rows)).tolist() == [2.0, 6.0]
    assert {"seaborn", "byzfl.benchmark", "byzfl.fed_framework"} & set(sys.modules) == other


def test_a_peer_that_is_missing_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    peers.load.cache_clear()
    with pytest.raises(MissingError, match=r"byzpy is not installed here: .*pip install --no-deps byzpy==0.1.4"):
        peers.load("byzpy.aggregators")
