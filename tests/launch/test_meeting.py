"""What ranks that talk without MPI are told of where to meet."""

import socket
from pathlib import Path

from test_plan import NODES, RUN, job

from draco.launch import meeting
from draco.launch.plan import plan
from draco.runs import spoken


def test_with_mpi_and_in_a_simulation_ranks_are_told_nothing() -> None:
    for made in (plan(job(), RUN, port=20_007), plan(job("transport=torch", "launcher=simulate"), RUN)):
        assert not {spoken.NAME, "MASTER_ADDR", "MASTER_PORT"} & dict(made.environment).keys()


def test_on_one_machine_they_meet_where_no_other_machine_can_reach() -> None:
    told = dict(plan(job("transport=torch"), RUN, port=20_007).environment)
    assert (told["MASTER_ADDR"], told["MASTER_PORT"]) == ("127.0.0.1", "20007")
    assert (spoken.told(told), spoken.told({})) == ("torch", "mpi")


def test_on_a_cluster_they_meet_at_the_head() -> None:
    argv = plan(job("transport=torch"), RUN, NODES, port=20_007).argv
    told = {argv[at + 1] for at, word in enumerate(argv) if word == "-x"}
    assert {"DRACO_TRANSPORT=torch", "MASTER_ADDR=10.0.0.10", "MASTER_PORT=20007"} <= told


def test_a_port_is_one_that_firewalls_let_pass_whether_it_is_looked_for_or_not() -> None:
    first, other = (
        int(dict(plan(job("transport=torch"), Path(f"runs/{name}")).environment)["MASTER_PORT"]) for name in ("a", "b")
    )
    assert first != other
    assert {first, other} <= {*meeting.PORTS}


def test_a_port_that_is_taken_is_not_chosen(monkeypatch) -> None:
    with socket.create_server(("", 0)) as door:
        taken = door.getsockname()[1]
        monkeypatch.setattr(meeting, "PORTS", [taken])
        monkeypatch.setattr(meeting, "_TRIES", 1)
        assert meeting.free_port() is None
    assert meeting.free_port() == taken
