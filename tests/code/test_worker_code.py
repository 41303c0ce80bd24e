"""The head's side: which nodes are sent a pack, what is said of one that cannot take it, and a touched copy."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from draco.cluster import remote
from draco.code.pack import Pack, loaded
from draco.errors import MissingError, NotConfiguredError
from draco.job import Job, to_yaml
from draco.launch import every_node, facts, preflight, supervise, worker_code
from draco.launch.every_node import Answer
from draco.launch.plan import plan
from draco.launch.roster import Host, Roster
from draco.runs import directory as run_directory

PACK = Pack({"task.py": b"x = 1\n"})
NODES = Roster("dev", "10.0.0.0/24", "python", "ssh", tuple(Host(name, name, 4) for name in ("head", "a", "b", "c")))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[list[str], str, list[str]]]:
    """Answer in the place of the nodes: b has nothing, c nothing and no room; return what they were asked."""
    heard: list[tuple[list[str], str, list[str]]] = []

    def ask(
        roster: Roster, argv: Sequence[str], limit_s: float = 20.0, *, text: str = "", only: Sequence[str] = ()
    ) -> dict[str, Answer]:
        names = [node.name for node in roster.nodes[1:] if not only or node.name in only]
        heard.append((list(argv), text, names))
        faults = {"b": "" if "put" in argv else "missing", "c": "disk full" if "put" in argv else "missing"}
        return {name: Answer("", faults.get(name, "")) for name in names}

    monkeypatch.setattr(every_node, "ask", ask)
    monkeypatch.setattr(every_node, "WORK", str(tmp_path / "srv"))
    return heard


def test_nodes_that_lack_a_pack_are_sent_it_and_those_that_cannot_take_it_are_named(
    asked: list[tuple[list[str], str, list[str]]], tmp_path: Path
) -> None:
    with pytest.raises(MissingError) as caught:
        worker_code.provide(NODES, PACK)
    assert str(caught.value) == "c: the job's own code: disk full"
    (_, _, first), (argv, text, lacking) = asked
    assert (first, lacking) == (["a", "b", "c"], ["b", "c"])
    assert argv[-3:] == ["draco.code.store", "put", PACK.digest]
    assert loaded(text, PACK.digest) == PACK
    assert (tmp_path / "srv/data/.code" / PACK.digest / "task.py").read_bytes() == b"x = 1\n"


def test_nobody_is_asked_where_there_is_nothing_to_send(asked: list[Any]) -> None:
    worker_code.provide(NODES, Pack())
    worker_code.provide(NODES, PACK, only=[])
    assert asked == []


def test_a_node_that_comes_back_gets_the_runs_code_before_it_takes_part(
    asked: list[tuple[list[str], str, list[str]]], tmp_path: Path, make_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    job = make_job()
    run = run_directory.create(tmp_path / "runs", job.name, to_yaml(job), PACK)
    monkeypatch.setattr(preflight, "_unfit", lambda roster, ended, names: {name: [] for name in names})
    monkeypatch.setattr(preflight.worker_data, "provide", lambda *_: None)
    assert preflight.fit(NODES, job, run, ["b"]) == ["b"]
    assert preflight.fit(NODES, job, run, ["c"]) == []
    assert [names for argv, _, names in asked if "put" in argv] == [["b"], ["c"]]


def test_ranks_load_from_the_run_or_on_a_cluster_from_the_same_place_on_every_node(
    asked: list[Any], tmp_path: Path, make_job: Callable[..., Job]
) -> None:
    job = make_job("launcher=mpi")
    run = run_directory.create(tmp_path / "runs", job.name, to_yaml(job), PACK)
    here, there = worker_code.of_run(run, None), worker_code.of_run(run, NODES)
    assert here is not None
    assert there is not None
    assert (here.folder, there.folder) == (run / "code", tmp_path / "srv/data/.code" / PACK.digest)
    alone = dict(plan(job, run, code=here).environment)
    assert (alone["DRACO_CODE"], alone["DRACO_CODE_DIGEST"]) == (str(run / "code"), PACK.digest)
    assert f"DRACO_CODE={there.folder}" in plan(job, run, NODES, code=there).argv
    without = run_directory.create(tmp_path / "runs", job.name, to_yaml(job))
    assert worker_code.of_run(without, NODES) is None
    assert "DRACO_CODE" not in dict(plan(job, without).environment)


def test_a_run_whose_copy_was_touched_fails_before_it_is_launched(tmp_path: Path, make_job: Callable[..., Job]) -> None:
    job = make_job()
    run = run_directory.create(tmp_path / "runs", job.name, to_yaml(job), PACK)
    (run / "code/more.py").touch()
    outcome = supervise.supervise(job, run, None, forks="none")
    assert outcome.status.state == "failed"
    assert "more.py was not recorded" in outcome.status.message


def test_what_nodes_say_of_packages_is_looked_at_as_foreign_text() -> None:
    assert facts.lacking({"lacks": ["timm", 3, None]}) == ["timm"]
    assert [facts.lacking(said) for said in (None, [], {"lacks": "timm"}, {})] == [[], [], [], []]
    assert facts.facts(["torch", "no_such_package"])["lacks"] == ["no_such_package"]


def test_a_head_that_does_not_take_the_code_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Up:
        name, python = "dev", "python"

    monkeypatch.setattr(remote, "on_node", lambda *_: ["sh", "-c", "cat > /dev/null; echo no room >&2; exit 1"])
    with pytest.raises(NotConfiguredError, match="dev: its head did not take the job's own code: no room"):
        remote.send_code(Up(), PACK)  # type: ignore[arg-type]
    monkeypatch.setattr(remote, "on_node", lambda *_: ["true"])
    assert remote.send_code(Up(), Pack()) == ["--code", Pack().digest]  # type: ignore[arg-type]
