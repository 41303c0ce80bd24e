"""Ranks that are forked: what mpirun started and what does the work are one process to everybody else."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from draco.launch import fork_client

LIMIT_S = 30.0
# Stands for draco.training.process; it is no torch that these tests are about.
RANKS = """
import os, signal, sys, time

def load():
    if os.environ.get("BROKEN"):
        raise RuntimeError("out of memory")

def main(run, simulate):
    say = lambda *words: os.write(1, (" ".join(map(str, words)) + "\\n").encode())
    name = run.name
    say(os.getpid(), os.getcwd(), simulate, os.environ.get("OF_THE_RANK"))
    if name == "raises":
        raise ValueError("a fault of its own")
    if name == "code":
        os._exit(7)
    if name == "catches":
        signal.signal(signal.SIGTERM, lambda *_: (say("told"), os._exit(3)))
    while name != "ends":
        say("works")
        time.sleep(0.02)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ranks_of_a_test.py").write_text(RANKS)
    return tmp_path


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), fork_client.NAME: f"test-{os.getpid()}-{time.monotonic_ns()}"}


@pytest.fixture
def server(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    monkeypatch.setattr(fork_client, "MODULE", "ranks_of_a_test")
    started = fork_client.start(environment[fork_client.NAME], environment)
    yield started
    started.kill()
    started.wait()


class Rank:
    """What mpirun would have started."""

    def __init__(self, folder: Path, environment: dict[str, str], run: str) -> None:
        line = "import sys; from draco.launch import fork_client as c; c.MODULE = 'ranks_of_a_test'; "
        line += f"c.run_forked({run!r}, False); print('plainly')"
        self.process = subprocess.Popen(
            [sys.executable, "-c", line], env={**environment, "OF_THE_RANK": run}, cwd=folder,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def pid(self) -> int:
        """Return the process id of what does the work."""
        return int(self.line().split()[0])

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out, err


def within(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "gone"


@pytest.mark.usefixtures("server")
def test_a_forked_rank_has_the_folder_the_environment_and_the_streams_of_its_representative(
    folder: Path, environment: dict[str, str]
) -> None:
    rank = Rank(folder, environment, "ends")
    code, out, err = rank.end()
    pid, where, simulate, own = out.split()
    assert (code, err) == (0, "")
    assert int(pid) != rank.process.pid
    assert (where, simulate, own) == (str(folder), "False", "ends")


@pytest.mark.usefixtures("server")
def test_a_representative_ends_as_its_rank_does(folder: Path, environment: dict[str, str]) -> None:
    failing, coded, killed = (Rank(folder, environment, name) for name in ("raises", "code", "works"))
    code, _, err = failing.end()
    assert code == 1
    assert "a fault of its own" in err
    assert coded.end()[0] == 7
    os.kill(killed.pid(), signal.SIGKILL)
    assert killed.end()[0] == -signal.SIGKILL


@pytest.mark.usefixtures("server")
def test_signals_of_a_representative_reach_its_rank(folder: Path, environment: dict[str, str]) -> None:
    told, killed = Rank(folder, environment, "catches"), Rank(folder, environment, "works")
    told.pid()
    assert told.line() == "works"  # its handler is there
    told.process.send_signal(signal.SIGUSR1)  # ignored until a rank says otherwise
    told.process.send_signal(signal.SIGTERM)
    code, out, _ = told.end()
    assert (code, out.split()[-1]) == (3, "told")
    pid = killed.pid()
    killed.process.kill()
    within(lambda: state(pid) in ("gone", "Z"))
    killed.end()


@pytest.mark.usefixtures("server")
def test_a_stopped_representative_stops_its_rank_until_it_goes_on(folder: Path, environment: dict[str, str]) -> None:
    rank = Rank(folder, environment, "works")
    pid = rank.pid()
    rank.process.send_signal(signal.SIGSTOP)
    within(lambda: state(pid) == "T")
    rank.process.send_signal(signal.SIGCONT)
    within(lambda: state(pid) in ("S", "R"))
    rank.process.kill()
    rank.end()


def test_no_rank_outlives_its_server(
    folder: Path, environment: dict[str, str], server: subprocess.Popen[bytes]
) -> None:
    rank = Rank(folder, environment, "works")
    pid = rank.pid()
    assert [rank.line() for _ in range(10)] == ["works"] * 10  # by then its representative knows of it
    server.kill()
    code, _, err = rank.end()
    assert (code, err) == (-signal.SIGKILL, "the fork server has ended, and with it this rank\n")
    within(lambda: state(pid) in ("gone", "Z"))


def test_a_server_that_is_told_to_end_stays_with_its_ranks(
    folder: Path, environment: dict[str, str], server: subprocess.Popen[bytes]
) -> None:
    rank = Rank(folder, environment, "catches")
    rank.pid()
    rank.line()
    server.terminate()
    assert rank.line() == "works"
    rank.process.terminate()
    assert rank.end()[0] == 3
    assert server.wait(LIMIT_S) == 0


@pytest.mark.usefixtures("server")
def test_a_rank_whose_libraries_want_another_environment_starts_plainly_and_says_so(
    folder: Path, environment: dict[str, str]
) -> None:
    code, out, err = Rank(folder, {**environment, "OMP_NUM_THREADS": "17"}, "ends").end()
    assert (code, out) == (0, "plainly\n")
    assert err == "the fork server is of no use (it has other values of OMP_NUM_THREADS): importing torch anew\n"


def test_a_server_that_cannot_start_is_said_and_done_without(folder: Path, environment: dict[str, str]) -> None:
    broken = {**environment, "BROKEN": "1"}
    code, out, err = Rank(folder, broken, "ends").end()
    assert (code, out) == (0, "plainly\n")
    assert err.startswith("the fork server is of no use (")


def test_without_a_server_a_rank_starts_plainly_and_says_nothing(folder: Path, environment: dict[str, str]) -> None:
    del environment[fork_client.NAME]
    assert Rank(folder, environment, "ends").end() == (0, "plainly\n", "")


def test_a_server_of_another_user_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be told the whole environment."""
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    name = f"test-{os.getpid()}-foreign"
    with door:
        door.bind(fork_client.address(name))
        door.listen()
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(PermissionError, match="another user's"):
            fork_client._connect(name)


def test_the_first_rank_of_a_node_starts_its_server_and_the_next_finds_it(
    folder: Path, environment: dict[str, str]
) -> None:
    """It ends some time after the last rank, and holds no rank's streams open until then."""
    first, second = (Rank(folder, environment, "catches") for _ in range(2))
    servers = {parent(rank.pid()) for rank in (first, second)}
    assert len(servers) == 1
    for rank in (first, second):
        rank.process.terminate()
        assert rank.end()[0] in (3, -signal.SIGTERM)
    assert Rank(folder, environment, "ends").end()[0] == 0
    os.kill(servers.pop(), signal.SIGTERM)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
