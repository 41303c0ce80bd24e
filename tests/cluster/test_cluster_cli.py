"""The command line where clusters are concerned: what it refuses, where a command runs, and what it exits with."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from draco.cli import train, where
from draco.cli.main import main
from draco.cluster import lifecycle, remote, state, status
from draco.cluster.backend import BACKENDS, Cluster, Node, Offer, Request, Say, names
from draco.errors import MissingError, NotConfiguredError, RefusedError
from draco.launch.progress import Progress
from draco.runs import directory as run_directory

JOB = "{name: a, workers: 3, model: lenet, data: synthetic, batch_size: 6, steps: 2, scheme: uncoded}"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where no cluster is up and no run has been; an engine is none of ours: its volumes are not in this folder."""
    monkeypatch.chdir(tmp_path)
    no_tool = MissingError("there is no command docker")
    monkeypatch.setitem(BACKENDS, "docker", Kind(down=no_tool, purge=no_tool))
    return tmp_path


class Kind:
    """A kind of cluster that notes what is asked of it, and fails in what it is told to fail in."""

    def __init__(self, **faults: Exception) -> None:
        self._faults = faults
        self.asked: list[tuple[Any, ...]] = []

    def _ask(self, *words: Any) -> None:
        self.asked.append(words)
        if words[0] in self._faults:
            raise self._faults[words[0]]

    def down(self, cluster: Cluster, folder: Path, say: Say) -> None:
        self._ask("down", cluster.name, cluster.backend, cluster.nodes, folder)

    def purge(self, name: str, folder: Path, say: Say) -> None:
        self._ask("purge", name, folder)


def kinds(monkeypatch: pytest.MonkeyPatch, **faults: dict[str, Exception]) -> dict[str, Kind]:
    """Let every kind of cluster be one that notes what is asked of it."""
    made = {kind: Kind(**faults.get(kind, {})) for kind in BACKENDS}
    for kind, backend in made.items():
        monkeypatch.setitem(BACKENDS, kind, backend)
    return made


def is_up(name: str = "dev", workers: int = 2) -> Cluster:
    """Say that a cluster is up, of which there is nothing."""
    nodes = tuple(Node(node, f"10.0.0.{10 + i}") for i, node in enumerate(names(workers)))
    made = Cluster(name, "netns", nodes, "10.0.0.0/24", "host", sys.executable, "root", "2026-01-01T00:00:00+00:00", {})
    state.save(made)
    return made


def run_here(*logs: str, over: run_directory.State = "succeeded") -> Path:
    run = run_directory.create(Path("runs"), "a", JOB)
    for log in logs:
        (run / "logs" / log).write_text(f"from {log}\n")
    run_directory.write_status(run, over, 2)
    return run


# draco cluster


def test_status_without_a_cluster_says_how_to_get_one(capsys) -> None:
    assert main(["cluster", "status"]) == 3
    assert capsys.readouterr().err == "no cluster is up; make cluster-up starts one\n"


def test_status_of_another_cluster_names_those_that_are_up(capsys) -> None:
    is_up()
    assert main(["cluster", "status", "--name", "prod"]) == 3
    assert "no cluster prod is up; up are: dev" in capsys.readouterr().err


def test_a_kind_of_cluster_that_there_is_none_of_is_told_with_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys, here: Path
) -> None:
    monkeypatch.setattr(lifecycle.configure, "require", lambda: None)
    assert main(["cluster", "up", "--cluster", "lxc"]) == 3
    assert capsys.readouterr().err == "CLUSTER=lxc: there are docker, netns, ssh, aws\n"
    assert list(here.iterdir()) == []


def test_another_kind_under_the_name_of_a_cluster_is_refused(capsys) -> None:
    is_up()
    assert main(["cluster", "up", "--cluster", "ssh", "--inventory", "hosts.yml"]) in (3, 4)
    said = capsys.readouterr().err
    assert "is up already as CLUSTER=netns" in said or "ansible is not in this virtual environment" in said


def test_a_cluster_whose_nodes_are_gone_is_shown_as_it_is(capsys) -> None:
    is_up()
    assert main(["cluster", "status"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("dev (netns), up since 2026-01-01")
    assert said.count("stopped") == 3
    assert "run: the head does not answer" in said


def test_status_as_json_says_that_it_is_not_healthy(capsys) -> None:
    is_up()
    assert main(["cluster", "status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["cluster"], found["healthy"], found["run"]) == ("dev", "netns", False, None)
    assert [node["name"] for node in found["nodes"]] == ["head", "worker-01", "worker-02"]


def storage() -> Path:
    """Return what a cluster of namespaces leaves that is down."""
    path = Path(".clusters/dev-storage/runs")
    path.mkdir(parents=True)
    state.note_kinds("dev", ["netns"])
    return path


def answers(monkeypatch: pytest.MonkeyPatch, typed: str | None) -> None:
    """Let a user type that; None: nobody may be asked."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail("it asked") if typed is None else typed)


PURGE = ["cluster", "purge"]
FOLDER = Path(".clusters/dev")


def test_a_purge_that_nobody_can_confirm_is_refused_and_removes_nothing(capsys) -> None:
    kept = storage()
    assert main(PURGE) == 4
    assert "dev: this removes all its runs and checkpoints; YES=1 says that it may" in capsys.readouterr().err
    assert kept.exists()
    assert state.kinds("dev") == ["netns"]


@pytest.mark.parametrize(("typed", "code"), [("dev", 0), ("prod", 4), ("", 4)])
def test_a_purge_is_confirmed_by_the_name(monkeypatch: pytest.MonkeyPatch, typed: str, code: int) -> None:
    kept = storage()
    answers(monkeypatch, typed)
    assert main(PURGE) == code
    assert kept.exists() == bool(code)


def test_a_purge_with_yes_asks_nobody(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    kept = storage()
    answers(monkeypatch, None)
    assert main([*PURGE, "--yes"]) == 0
    assert "dev: its runs and data are gone" in capsys.readouterr().out
    assert not kept.exists()


@pytest.mark.parametrize("yes", [["--yes"], []], ids=["said", "to be asked"])
def test_the_storage_of_a_cluster_that_is_up_is_not_purged(monkeypatch, capsys, yes: list[str]) -> None:
    kept = storage()
    is_up()
    answers(monkeypatch, None)  # to no purpose
    for kind in ([], ["--cluster", "netns"]):
        assert main([*PURGE, *yes, *kind]) == 4
        assert capsys.readouterr().err == "dev: is up; make cluster-down first\n"
    assert kept.exists()


@pytest.mark.parametrize("yes", [["--yes"], []], ids=["said", "to be asked"])
def test_storage_of_which_nothing_is_known_is_purged_where_its_kind_is_told(
    monkeypatch, capsys, yes: list[str]
) -> None:
    kept = storage()
    state.note_kinds("dev", [])
    answers(monkeypatch, None)
    assert main([*PURGE, *yes]) == 3
    said = capsys.readouterr()
    assert said.err == "dev: nothing is known here of its storage; CLUSTER=docker, netns or aws says where it is\n"
    assert "are gone" not in said.out
    assert kept.exists()
    answers(monkeypatch, "dev")
    assert main([*PURGE, *yes, "--cluster", "netns"]) == 0
    assert not kept.exists()


def test_a_purge_asks_the_kinds_that_a_cluster_was_of_and_no_other(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    made = kinds(monkeypatch)
    state.note_kinds("dev", ["docker", "netns"])
    state.note_kinds("other", ["ssh"])
    assert main([*PURGE, "--yes"]) == 0
    asked = [("purge", "dev", FOLDER)]
    assert {kind: backend.asked for kind, backend in made.items()} == {
        "docker": asked,
        "netns": asked,
        "ssh": [],
        "aws": [],
    }
    assert (state.kinds("dev"), state.kinds("other")) == ([], ["ssh"])
    assert main([*PURGE, "--yes"]) == 3  # it is gone
    assert "nothing is known here" in capsys.readouterr().err


def test_a_purge_of_one_kind_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    made = kinds(monkeypatch)
    state.note_kinds("dev", ["docker", "netns"])
    assert main([*PURGE, "--yes", "--cluster", "netns"]) == 0
    asked = [("purge", "dev", FOLDER)]
    assert {kind: backend.asked for kind, backend in made.items()} == {
        "docker": [],
        "netns": asked,
        "ssh": [],
        "aws": [],
    }
    assert state.kinds("dev") == ["docker"]


def test_a_purge_that_fails_is_told_and_not_forgotten(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    kinds(monkeypatch, netns={"purge": RefusedError("dev: its nodes are there")})
    state.note_kinds("dev", ["docker", "netns"])
    assert main([*PURGE, "--yes"]) == 4
    said = capsys.readouterr()
    assert said.err == "dev: its nodes are there\n"
    assert "are gone" not in said.out
    assert state.kinds("dev") == ["netns"]


def test_somebodys_own_machines_are_not_purged(capsys) -> None:
    state.note_kinds("dev", ["ssh"])
    assert main([*PURGE, "--yes"]) == 4
    said = capsys.readouterr()
    assert said.err == "dev: these machines are yours: remove /srv/draco on them yourself\n"
    assert "are gone" not in said.out


def test_only_a_kind_that_there_is_can_be_purged_or_taken_down(capsys) -> None:
    kept = storage()
    (state.folder("dev") / "key").write_text("secret")
    for words in ([*PURGE, "--yes"], ["cluster", "down"]):
        assert main([*words, "--cluster", "lxc"]) == 3
        assert capsys.readouterr().err.splitlines()[-1] == "CLUSTER=lxc: there are docker, netns, ssh, aws"
    assert kept.exists()
    assert (FOLDER / "key").exists()
    assert state.kinds("dev") == ["netns"]


def downs(*asked: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return what every kind is asked where a cluster of which nothing is known is taken down by some."""
    return {kind: [("down", "dev", kind, (), FOLDER)] if kind in asked else [] for kind in BACKENDS}


@pytest.mark.parametrize(
    ("noted", "told", "asked"),
    [
        (["docker", "netns"], [], ["docker", "netns"]),
        (["ssh"], [], ["ssh"]),
        ([], ["--cluster", "netns"], ["netns"]),
        (["docker", "netns"], ["--cluster", "netns"], ["netns"]),
        ([], [], []),
    ],
    ids=["two kinds", "one", "told", "one of two", "nothing known"],
)
def test_what_is_left_without_a_state_file_is_taken_down_by_the_kinds_it_can_be_of(
    monkeypatch: pytest.MonkeyPatch, noted: list[str], told: list[str], asked: list[str]
) -> None:
    made = kinds(monkeypatch)
    (state.folder("dev") / "key").write_text("secret")
    state.note_kinds("dev", noted)
    assert main(["cluster", "down", *told]) == 0
    assert {kind: backend.asked for kind, backend in made.items()} == downs(*asked)
    assert not FOLDER.exists()
    assert state.kinds("dev") == noted  # their storage stays


def test_nothing_to_take_down_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made = kinds(monkeypatch)
    assert main(["cluster", "down"]) == 0
    assert {kind: backend.asked for kind, backend in made.items()} == downs()


@pytest.mark.parametrize("told", [[], ["--cluster", "docker"]], ids=["nothing told", "another told"])
def test_a_cluster_that_is_up_is_taken_down_by_its_own_kind(monkeypatch, told: list[str]) -> None:
    made = kinds(monkeypatch)
    cluster = is_up()
    state.note_kinds("dev", ["docker", "netns"])
    assert main(["cluster", "down", *told]) == 0
    asked = {"netns": [("down", "dev", "netns", cluster.nodes, FOLDER)]}
    assert {kind: backend.asked for kind, backend in made.items()} == {**downs(), **asked}
    assert state.load("dev") is None
    assert state.kinds("dev") == ["docker", "netns"]


@pytest.mark.parametrize(("fault", "code"), [(MissingError("dev: docker rm: no"), 3), (RefusedError("no"), 4)])
def test_what_cannot_be_taken_down_is_told_and_not_forgotten(monkeypatch, capsys, fault, code: int) -> None:
    kinds(monkeypatch, docker={"down": fault})
    state.note_kinds("dev", ["docker"])
    (state.folder("dev") / "key").write_text("secret")
    assert main(["cluster", "down"]) == code
    assert capsys.readouterr().err.splitlines()[-1] == str(fault)
    assert (FOLDER / "key").exists()
    assert state.kinds("dev") == ["docker"]


def test_a_kind_is_noted_before_anything_is_started(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    noted: list[list[str]] = []

    def up(request: Request, folder: Path, say: Say) -> Cluster:
        noted.append(state.kinds(request.name))
        (folder / "operator_key").touch()
        raise RefusedError("half of it is up")

    monkeypatch.setattr(lifecycle.configure, "require", lambda: None)
    for kind in BACKENDS:
        monkeypatch.setitem(BACKENDS, kind, SimpleNamespace(up=up))
    assert main(["cluster", "up", "--cluster", "netns"]) == 4
    assert main(["cluster", "up", "--cluster", "docker"]) == 4
    assert capsys.readouterr().err.splitlines()[-1] == "half of it is up"
    assert noted == [["netns"], ["docker", "netns"]]
    assert state.names() == []
    made = kinds(monkeypatch)
    assert main(["cluster", "down"]) == 0
    assert {kind: backend.asked for kind, backend in made.items()} == downs("docker", "netns")


@pytest.mark.parametrize("workers", ["0", "-1", "1.5", "2e1", "three", ""])
def test_workers_are_a_whole_number_of_one_or_more(monkeypatch: pytest.MonkeyPatch, capsys, workers: str) -> None:
    monkeypatch.setattr(lifecycle, "up", lambda *_: pytest.fail("it was brought up"))
    with pytest.raises(SystemExit) as refused:
        main(["cluster", "up", "--workers", workers])
    assert refused.value.code == 2
    assert f"is {workers}; it must be a whole number, 1 or more" in capsys.readouterr().err


@pytest.fixture
def ups(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Request]]:
    """What clusters are brought up, of which there is nothing."""
    asked: list[tuple[str, Request]] = []

    def up(kind: str, request: Request, say: object) -> tuple[Cluster, int]:
        asked.append((kind, request))
        return is_up(request.name, request.workers), 0

    monkeypatch.setattr(lifecycle, "up", up)
    return asked


def test_a_first_up_has_defaults(ups: list[tuple[str, Request]]) -> None:
    assert main(["cluster", "up"]) == 0
    assert ups == [("docker", Request("dev", 3, "draco:latest", None, None, None))]
    assert main(["cluster", "up", "--name", "one", "--cluster", "netns", "--workers", "1"]) == 0
    assert ups[1] == ("netns", Request("one", 1, "draco:latest", None, None, None))


OF_SSH = ("ssh", {"image": "draco:x", "inventory": "/p/hosts.yml"})
OF_DOCKER = ("docker", {"image": "draco:x", "image_id": "sha256:0", "cpus": 1.0, "cores": 2, "memory_mb": 512})


@pytest.mark.parametrize(
    ("kept", "words", "request_made"),
    [
        (OF_SSH, [], Request("dev", 5, "draco:x", None, None, Path("/p/hosts.yml"))),
        (
            OF_SSH,
            ["--workers", "7", "--image", "draco:y", "--inventory", "new.yml"],
            Request("dev", 7, "draco:y", None, None, Path("new.yml")),
        ),
        (OF_DOCKER, [], Request("dev", 5, "draco:x", None, 512, None)),
        (OF_DOCKER, ["--memory-mb", "1024"], Request("dev", 5, "draco:x", None, 1024, None)),
    ],
    ids=["ssh, nothing said", "ssh, said anew", "docker, nothing said", "docker, said anew"],
)
def test_a_second_up_remembers_what_the_first_was_told(
    ups, kept: tuple[str, dict[str, Any]], words: list[str], request_made: Request
) -> None:
    kind, details = kept
    state.save(is_up(workers=5)._replace(backend=kind, details=details))
    assert main(["cluster", "up", *words]) == 0
    assert ups == [(kind, request_made)]


@pytest.mark.parametrize(("words", "typed", "code"), [(["--yes"], None, 0), ([], "y", 0), ([], "n", 4)])
def test_what_costs_money_is_asked_for_and_what_was_agreed_is_passed_on(
    ups, monkeypatch: pytest.MonkeyPatch, words: list[str], typed: str | None, code: int
) -> None:
    offers = SimpleNamespace(offer=lambda request, folder, console: Offer("a price", f"{request.name}: start it"))
    monkeypatch.setitem(BACKENDS, "aws", offers)
    answers(monkeypatch, typed)
    assert main(["cluster", "up", "--cluster", "aws", "--set", "hours=2", *words]) == code
    wanted = Request("dev", 3, "draco:latest", settings=("hours=2",), agreed="a price")
    assert ups == ([("aws", wanted)] if code == 0 else [])


def test_settings_are_refused_where_nothing_takes_them(ups, capsys) -> None:
    assert main(["cluster", "up", "--cluster", "netns", "--set", "hours=2"]) == 4
    assert capsys.readouterr().err == "SET=hours=2: is for CLUSTER=aws\n"
    assert ups == []


def test_a_shell_on_a_node_that_there_is_none_of_names_those_that_there_are(capsys) -> None:
    is_up()
    assert main(["cluster", "ssh", "worker-9"]) == 3
    assert capsys.readouterr().err == "NODE=worker-9: dev has head, worker-01, worker-02\n"


def test_a_shell_is_opened_on_the_head_where_no_node_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    is_up()
    called: list[list[str]] = []

    def becomes(file: str, argv: list[str]) -> None:
        called.append(argv)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execvp", becomes)
    with pytest.raises(SystemExit):
        main(["cluster", "ssh"])
    (argv,) = called
    assert argv[:2] == ["ssh", "-F"]
    assert "-t" in argv
    assert "head" in argv


def test_a_cluster_cannot_be_named_after_a_folder_elsewhere(here: Path) -> None:
    (here / ".clusters").mkdir()
    (here / "jobs").mkdir()
    (here / "jobs" / "precious.yaml").write_text("")
    main(["cluster", "down", "--name", "../jobs"])
    assert (here / "jobs" / "precious.yaml").exists()


# Where a command runs


def args(run: Any = None, on: str | None = None, here: bool = False) -> argparse.Namespace:
    return argparse.Namespace(run=run, on=on, here=here)


def test_without_a_cluster_everything_runs_here() -> None:
    assert where.target(args()) is None
    assert where.target(args(Path("runs/elsewhere"))) is None
    with pytest.raises(MissingError, match="no cluster dev is up"):
        where.target(args(on="dev"))


def test_with_a_cluster_everything_runs_there_unless_here_is_asked_for() -> None:
    cluster = is_up()
    assert where.target(args()) == cluster
    assert where.target(args(Path("runs/there"))) == cluster
    assert where.target(argparse.Namespace(on=None, here=False)) == cluster  # a command without a run
    assert where.target(args(here=True)) is None


def test_a_run_of_this_machine_is_looked_at_here() -> None:
    cluster, run = is_up(), run_here()
    assert where.target(args(run)) is None
    assert where.target(args([run, run])) is None
    assert where.target(args([run, Path("runs/there")])) == cluster
    assert where.target(args([])) == cluster


def test_several_clusters_need_a_name() -> None:
    is_up("a")
    second = is_up("b")
    with pytest.raises(RefusedError, match="clusters a, b are up: say which by NAME=a"):
        where.target(args())
    assert where.target(args(on="b")) == second
    assert where.target(args(here=True)) is None


def test_a_cluster_that_was_named_is_the_one() -> None:
    assert where.target(args(run_here(), on=is_up().name))


def test_here_and_a_cluster_exclude_each_other() -> None:
    with pytest.raises(SystemExit) as refused:
        main(["logs", "--here", "--on", "dev"])
    assert refused.value.code == 2


@pytest.mark.parametrize("on", [["--on", "dev"], ["--on=dev"], []], ids=["two words", "one", "none"])
def test_the_same_command_runs_on_the_head_without_the_clusters_name(monkeypatch, capsys, on: list[str]) -> None:
    is_up()
    called: list[list[str]] = []
    monkeypatch.setattr(remote, "same", lambda cluster, words: called.append(words) or 5)
    assert main(["logs", "runs/x", *on, "--rank", "1"]) == 5
    assert called == [["logs", "runs/x", "--rank", "1"]]
    assert capsys.readouterr().err == "on dev (netns)\n"


@pytest.mark.parametrize("plot", [["--plot", "a.svg"], ["--plot=a.svg"], ["--html", "b"]], ids=" ".join)
def test_a_plot_is_not_drawn_on_a_cluster(monkeypatch: pytest.MonkeyPatch, capsys, plot: list[str]) -> None:
    is_up()
    monkeypatch.setattr(remote, "same", lambda *_: pytest.fail("it ran on the head"))
    assert main(["report", "runs/x", *plot]) == 4
    assert capsys.readouterr().err.startswith(f"{plot[0][:6]}: draws on the machine that holds the runs")


@pytest.mark.parametrize(
    "words",
    [
        ["report", "runs/x", "--plo", "a.svg"],
        ["report", "runs/x", "--o=dev"],
        ["logs", "--o", "dev"],
        ["logs", "--fol"],
        ["stop", "--ki"],
        ["eval", "--her"],
        ["train", "a.yaml", "--det"],
    ],
    ids=" ".join,
)
def test_options_are_given_in_full(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    is_up()
    monkeypatch.setattr(remote, "same", lambda *_: pytest.fail("it ran on the head"))
    with pytest.raises(SystemExit) as refused:
        main(words)
    assert refused.value.code == 2


def test_a_command_that_is_interrupted_ends_as_a_shell_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    run_here()
    monkeypatch.setattr("draco.launch.logs.show", interrupted)
    assert main(["logs", "--follow"]) == 130
    is_up()
    monkeypatch.setattr(remote, "same", interrupted)
    assert main(["logs", "runs/there", "--follow"]) == 130


def test_a_detached_run_on_a_cluster_is_named_on_stdout_and_not_watched(here: Path, monkeypatch, capsys) -> None:
    is_up()
    called: list[tuple[str, ...]] = []

    def draco(cluster: Cluster, *words: str) -> list[str]:
        called.append(words)
        return ["sh", "-c", "cat > got; echo first; echo runs/a-1"]

    monkeypatch.setattr(remote, "draco", draco)
    monkeypatch.setattr(remote, "attend", lambda *_: pytest.fail("it was watched"))
    (here / "a.yaml").write_text(JOB)
    assert main(["train", "a.yaml", "--detach", "--new"]) == 0
    said = capsys.readouterr()
    assert said.out == "runs/a-1\n"
    assert said.err.splitlines() == ["on dev (netns: head and 2 workers)", train.IN_THE_BACKGROUND]
    assert called == [("train", "-", "--checked", "--detach", "--new")]
    assert "name: a" in (here / "got").read_text()


def test_a_secret_stays_off_clusters(here: Path, capsys) -> None:
    is_up()
    (here / "a.yaml").write_text(JOB)
    (here / "secret").write_text("11" * 32)
    assert main(["train", "a.yaml", "--secret", "secret"]) == 4
    assert "a run's secret never leaves its head" in capsys.readouterr().err


# logs and stop


@pytest.mark.parametrize("command", ["logs", "stop"])
def test_a_command_for_the_newest_run_says_that_there_is_none(command: str, capsys) -> None:
    assert main([command]) == 3
    assert "runs: there is no run" in capsys.readouterr().err
    assert main([command, "runs/none"]) == 3
    assert "runs/none: is not a run directory" in capsys.readouterr().err


def test_a_run_that_is_over_cannot_be_stopped(capsys) -> None:
    run = run_here()
    assert main(["stop"]) == 4
    assert capsys.readouterr().err == f"{run}: is not running: succeeded at step 2\n"


RANKS = [f"rank.prterun-head-77@1.{rank}.out" for rank in (0, 1, 2, 11, 12)]


def test_the_logs_of_one_rank_are_its_own(capsys) -> None:
    run = run_here("output.log", *RANKS)
    assert main(["logs", str(run), "--rank", "1"]) == 0
    assert capsys.readouterr().out == f"==> {RANKS[1]} <==\nfrom {RANKS[1]}\n"


def test_all_logs_are_shown_each_under_its_name(capsys) -> None:
    run_here("output.log", *RANKS)
    assert main(["logs", "--follow"]) == 0  # it is over: nothing is waited for
    said = capsys.readouterr().out
    for log in ("output.log", *RANKS):
        assert f"==> {log} <==\nfrom {log}\n" in said


def test_a_rank_that_printed_nothing_is_told_so(capsys) -> None:
    run_here("output.log")
    main(["logs", "--rank", "7"])
    said = capsys.readouterr()
    assert said.out == ""
    assert "rank 7" in said.err


# How a run ended


@pytest.mark.parametrize(
    ("over", "code", "said"),
    [
        ("interrupted", 130, "runs/a: interrupted at step 3; go on with: make train JOB=a.yaml RESUME=1"),
        ("failed", 7, "runs/a: failed at step 3: why"),
        ("lost", 8, "runs/a: lost at step 3: why\ngo on with: make train JOB=a.yaml RESUME=1"),
    ],
)
def test_how_a_run_ended_is_told_with_the_way_on(capsys, over: run_directory.State, code: int, said: str) -> None:
    given = argparse.Namespace(job="a.yaml", set=[], on=None, here=False, simulate=False, recorded_code=False)
    assert train.ended(given, "runs/a", run_directory.Status(over, 3, "why", 1, "head", 0.0)) == code
    assert capsys.readouterr().err == said + "\n"


def test_a_lost_run_goes_on_once_its_cluster_is_repaired(capsys) -> None:
    is_up()
    given = argparse.Namespace(
        job="a.yaml", set=["steps=9", "attack=random"], on="dev", here=False, simulate=False, recorded_code=False
    )
    assert train.ended(given, "runs/a", run_directory.Status("lost", 3, "why", 1, "head", 0.0)) == 8
    again = "make train JOB=a.yaml SET='steps=9 attack=random' NAME=dev RESUME=1"
    assert capsys.readouterr().err.splitlines()[-1] == f"go on with: make cluster-up NAME=dev && {again}"


# The way to the head and back


def on_head(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Let the head be a shell that does that, whatever it is told."""
    monkeypatch.setattr(remote, "draco", lambda cluster, *_: ["sh", "-c", line])


def test_a_run_is_started_with_the_job_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    on_head(monkeypatch, "cat > got; echo first; echo runs/a-1")
    assert remote.start(is_up(), "name: a\n", ["--new"]) == (0, "runs/a-1")
    assert Path("got").read_text() == "name: a\n"


def test_a_run_that_does_not_start_keeps_its_exit_code(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    on_head(monkeypatch, "echo said; exit 4")
    assert remote.start(is_up(), "", []) == (4, "")
    assert capsys.readouterr().out == "said\n"


@pytest.mark.parametrize(("line", "found"), [("echo '{\"run\": 1}'", {"run": 1}), ("exit 1", None), ("echo x", None)])
def test_what_the_head_says_of_its_run_is_taken_or_left(monkeypatch, line: str, found: Any) -> None:
    on_head(monkeypatch, line)
    assert remote.snapshot(is_up()) == found


VERDICT = '{"event": "state", "state": "lost", "step": 3, "message": "m", "pid": 1, "host": "h", "updated": 0.5}'


@pytest.mark.parametrize(
    ("stream", "verdict"),
    [
        ('{"event": "alive"}\n' + VERDICT + "\n", "lost"),
        ('{"event": "alive"}\n', None),
        ("", None),
        ("who knows\n" + VERDICT + "\n", "lost"),
    ],
    ids=["told", "broken off", "nothing", "noise"],
)
def test_a_run_is_watched_until_its_verdict_or_the_end_of_the_connection(stream: str, verdict: str | None) -> None:
    told = subprocess.Popen(["printf", "%s", stream], stdout=subprocess.PIPE)
    with told, Progress(None, Console(quiet=True), "") as progress:
        assert told.stdout
        found = remote._watched(is_up(), told.stdout, progress)
    assert (found and found.state) == verdict


MAY_GO_ON = "; the run may still be going on: make cluster-status"


def head_is(monkeypatch: pytest.MonkeyPatch, found: str, *line: str) -> list[list[str]]:
    """Let the head be found so; return what is to run beside its storage, where `line` runs instead if there is one."""
    asked: list[list[str]] = []

    def storage_command(cluster: Cluster, folder: Path, argv: list[str]) -> list[str] | None:
        asked.append(argv)
        return list(line) or None

    on_head(monkeypatch, "exit 1")
    monkeypatch.setitem(
        BACKENDS, "netns", SimpleNamespace(states=lambda *_: {"head": found}, storage_command=storage_command)
    )
    return asked


@pytest.mark.parametrize(
    ("found", "why", "line"),
    [
        ("missing", "is missing", []),
        ("stopped", "is stopped", ["false"]),  # its storage cannot be read
        ("paused", f"is paused{MAY_GO_ON}", ["touch", "recorded"]),
        ("unreachable", f"is unreachable{MAY_GO_ON}", ["touch", "recorded"]),
        ("running", f"is there but does not answer{MAY_GO_ON}", ["touch", "recorded"]),
    ],
)
def test_the_way_back_to_a_head_is_told_and_whether_a_run_may_go_on_without(monkeypatch, found, why, line) -> None:
    cluster = is_up()
    head_is(monkeypatch, found, *line)
    with pytest.raises(NotConfiguredError) as error:
        remote.attend(cluster, "runs/a", Console(quiet=True), "AGAIN")
    assert str(error.value) == (f"dev: the head {why}. make cluster-up NAME=dev brings the head back, then: AGAIN")
    assert not Path("recorded").exists()  # as lost, which nobody knows


def test_a_run_whose_head_is_gone_is_recorded_as_lost_where_its_storage_can_be_reached(monkeypatch) -> None:
    cluster = is_up()
    told = json.dumps({key: value for key, value in json.loads(VERDICT).items() if key != "event"})
    asked = head_is(monkeypatch, "stopped", "echo", told)
    assert remote.attend(cluster, "runs/a", Console(quiet=True), "AGAIN").state == "lost"
    why = "the head is stopped, and the server with it"
    assert asked == [[sys.executable, "-m", "draco", "head", "lost", "runs/a", why]]


# Images and status


def runs_images(monkeypatch: pytest.MonkeyPatch, images: dict[str, str]) -> None:
    monkeypatch.setitem(BACKENDS, "netns", SimpleNamespace(images=lambda *_: images))


def test_nodes_with_another_image_than_the_heads_are_named(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    runs_images(monkeypatch, {"head": "sha256:aaaa", "worker-01": "sha256:bbbb", "worker-02": ""})
    with pytest.raises(NotConfiguredError) as refused:
        lifecycle.compare_images(is_up(), here)
    assert [line.split("; ")[0] for line in str(refused.value).splitlines()] == [
        "worker-01: runs image sha256:bbbb, the head runs sha256:aaaa",
        "worker-02: runs image none, the head runs sha256:aaaa",
    ]
    runs_images(monkeypatch, {})
    lifecycle.compare_images(is_up(), here)


def test_a_head_that_is_not_there_is_told_and_no_bug(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    runs_images(monkeypatch, {"worker-01": "sha256:bbbb"})
    with pytest.raises((NotConfiguredError, MissingError), match="head"):
        lifecycle.compare_images(is_up(), here)


RUNNING = {"run": "runs/a", "message": "", "step": 5, "steps": None, "steps_per_s": 2.0, "suspects": []}


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (None, "run: the head does not answer"),
        ({}, "run: none yet; make train JOB=jobs/quickstart.yaml"),
        (
            {**RUNNING, "state": "running", "steps": 9, "suspects": [1, 4]},
            "run: runs/a: running at step 5/9  2.0 steps/s  suspects: 1, 4",
        ),
        (
            {**RUNNING, "state": "running", "interruptions": 2, "without": {"worker-02": "gone", "worker-03": "gone"}},
            "run: runs/a: running at step 5  2.0 steps/s  suspects: none  interruptions: 2"
            "  without worker-02, worker-03",
        ),
        ({**RUNNING, "state": "lost", "message": "why"}, "run: runs/a: lost at step 5: why  suspects: none"),
    ],
    ids=["silent", "none", "running", "interrupted", "over"],
)
def test_the_newest_run_is_told_in_one_line(run: dict[str, Any] | None, said: str) -> None:
    assert status.run_line(run) == said
