"""The warnings that every command gives of a cluster's end."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from draco.cli.main import main
from draco.cluster import state
from draco.cluster.aws import home

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def started(root: Path, left: timedelta, *, wholly: bool = True) -> None:
    (root / "dev.aws").mkdir()
    expires = (NOW + left).strftime("%Y-%m-%dT%H:%M:%SZ")
    (root / "dev.aws" / "choice.json").write_text(json.dumps({"expires_at": expires}))
    if wholly:
        (root / "dev").mkdir()
        (root / "dev" / "cluster.json").write_text("{}")


@pytest.mark.parametrize(
    ("left", "wholly", "said"),
    [
        (timedelta(hours=1), True, []),
        (timedelta(minutes=12), True, ["dev: ends itself in 12 minutes; make extend NAME=dev HOURS=2 puts it off"]),
        (timedelta(0), True, ["dev: has expired; make cluster-down NAME=dev sees that nothing is left of it"]),
        (timedelta(hours=-5), False, ["dev: has expired; make cluster-down NAME=dev sees that nothing is left of it"]),
        (
            timedelta(hours=1), False,
            ["dev: came up only in part and costs money; make cluster-up NAME=dev goes on, make cluster-down NAME=dev "
             "removes it"],
        ),
    ],
)  # fmt: skip
def test_a_cluster_that_costs_money_for_nothing_is_named(
    tmp_path: Path, left: timedelta, wholly: bool, said: list[str]
) -> None:
    started(tmp_path, left, wholly=wholly)
    assert home.warnings(NOW, tmp_path) == said


def test_without_a_cluster_on_aws_there_is_nothing_to_warn_of(tmp_path: Path) -> None:
    assert home.warnings(NOW, tmp_path / "nothing") == []


def test_every_command_warns_but_those_that_see_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state.ROOT.mkdir()
    started(state.ROOT, timedelta(days=-9999))
    assert main(["validate", "--schema"]) == 0
    assert "warning: dev: has expired" in capsys.readouterr().err
    main(["cluster", "down", "--name", "other"])
    assert "warning" not in capsys.readouterr().err
