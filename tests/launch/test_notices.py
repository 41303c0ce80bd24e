"""Notices of its nodes' end at the head, with a stand-in for ssh that says what a test has it say."""

import json
import os
import re
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from draco.launch import notices
from draco.launch.notices import Notice, Notices, parse
from draco.launch.roster import Host, Roster

ROOT = Path(__file__).parents[2]
ROSTER = Roster("dev", "10.0.0.0/24", "python", "/etc/draco/ssh_config",
                tuple(Host(name, "10.0.0.1", 1) for name in ("head", "worker-01", "worker-02")))  # fmt: skip
GOES = Notice("interruption", "2026-01-02T03:04:05Z")
BALANCE = Notice("rebalance", "2026-01-02T03:02:05Z")


class Ssh:
    """The command ssh: notes how it was called, and does for each node what it is told, by bash."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for node in ("worker-01", "worker-02"):
            self.does(node, "while echo; do sleep 0.05; done")
        path = folder / "ssh"
        path.write_text(f'#!/bin/bash\necho "$BASHPID $*" >> {folder}/calls\nsource {folder}/$3.sh\n')
        path.chmod(stat.S_IRWXU)

    def does(self, node: str, script: str) -> None:
        (self._folder / f"{node}.sh").write_text(script)

    def calls(self, node: str) -> list[str]:
        """Return the process ids of the calls for a node."""
        path = self._folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []  # none has been started yet
        return [line.split()[0] for line in lines if line.split()[3] == node]

    def command(self) -> str:
        return (self._folder / "calls").read_text().splitlines()[0]


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ssh:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(notices, "AGAIN_S", 0.2)
    return Ssh(tmp_path / "bin")


@pytest.fixture
def heard(ssh: Ssh) -> Iterator[Callable[[], Notices]]:
    """Return what makes Notices; closes them."""
    made: list[Notices] = []

    def make() -> Notices:
        made.append(Notices(ROSTER))
        return made[-1]

    yield make
    for each in made:
        each.close()


def until(true: Callable[[], bool], limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "this takes too long"
        time.sleep(0.01)


def says(*lines: str) -> str:
    return "".join(f"echo '{line}'\n" for line in lines) + "exec sleep 60"


def test_a_notice_is_said_in_words() -> None:
    assert GOES.sentence() == "spot interruption at 03:04:05Z"
    assert BALANCE.sentence() == "rebalance recommendation"
    assert parse(GOES.text().encode()) == GOES


@pytest.mark.parametrize(
    "line",
    [
        "", "interruption", "[]", "null", "1", '"interruption"', "{}", '{"kind": "interruption"}', "[" * 1000,
        '{"kind": "rebalance", "at": 5}', '{"kind": ["rebalance"], "at": "2026-01-02T03:04:05Z"}',
        '{"kind": "end", "at": "2026-01-02T03:04:05Z"}', '{"kind": "interruption", "at": "soon"}',
        '{"kind": "interruption", "at": "2026-01-02T03:04:05Z\\u001b[2J"}', "\udcff\udcfe",
        '{"kind": "interruption", "at": "2026-13-45T33:04:05Z"}',
        '{"kind": "interruption", "at": "२026-01-02T03:04:05Z"}',
        '{"kind": "interruption", "at": 1' + "0" * 900 + "}",
    ],
)  # fmt: skip
def test_what_is_no_notice_is_passed_over(line: str) -> None:
    assert parse(line.encode(errors="surrogateescape")) is None


def test_each_node_speaks_for_itself_and_silence_is_no_notice(ssh: Ssh, heard: Callable[[], Notices]) -> None:
    ssh.does("worker-02", says(GOES.text(), json.dumps({**BALANCE._asdict(), "node": "worker-01"})))
    told = heard()
    until(lambda: bool(told.read()))
    until(lambda: told.read() == {"worker-02": BALANCE})
    assert ssh.command().split()[1:5] in [
        ["-F", "/etc/draco/ssh_config", name, "--"] for name in ("worker-01", "worker-02")
    ]
    assert notices.PATH in ssh.command()
    assert ssh.calls("head") == []


def test_a_notice_holds_while_the_connection_is_gone_and_until_a_fresh_node_has_none(
    ssh: Ssh, heard: Callable[[], Notices], tmp_path: Path
) -> None:
    ssh.does("worker-01", f"echo '{GOES.text()}'")  # and ends
    told = heard()
    until(lambda: told.read() == {"worker-01": GOES})
    ssh.does("worker-01", "exit 255")
    tries = len(ssh.calls("worker-01"))
    until(lambda: bool(told.read()) and len(ssh.calls("worker-01")) >= tries + 2)
    assert told.read() == {"worker-01": GOES}
    ssh.does("worker-01", "while echo; do sleep 0.05; done")
    until(lambda: told.read() == {})


def test_a_connection_that_ends_is_not_begun_anew_at_once(
    ssh: Ssh, heard: Callable[[], Notices], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "AGAIN_S", 1.0)
    ssh.does("worker-01", "exit 255")
    told, began = heard(), time.monotonic()
    while time.monotonic() - began < 1.5:
        told.read()
        time.sleep(0.01)
    assert len(ssh.calls("worker-01")) == 2


@pytest.mark.parametrize(
    "flood",
    ["exec yes", "exec cat /dev/zero", "exec cat /dev/urandom", f"exec yes '{'x' * 5000}'"],
    ids=["lines", "one line for ever", "noise", "long lines"],
)
def test_a_flood_takes_neither_time_nor_memory_and_hides_nobody(
    ssh: Ssh, heard: Callable[[], Notices], flood: str
) -> None:
    ssh.does("worker-01", flood)
    ssh.does("worker-02", says("x" * 2000, GOES.text()))
    told = heard()
    until(lambda: "worker-02" in told.read())
    for _ in range(200):
        began = time.monotonic()
        assert told.read() == {"worker-02": GOES}
        assert time.monotonic() - began < 0.5
    assert max(len(node._part) for node in told._nodes) <= notices.LONGEST + 1


def test_a_line_that_is_too_long_is_dropped_whole(ssh: Ssh, heard: Callable[[], Notices]) -> None:
    """Its end alone would be a notice, and so would all of it but for its length."""
    ssh.does("worker-01", f"printf '%07000d' 0; sleep 0.3; echo '{GOES.text()}'; exec sleep 60")
    ssh.does("worker-02", says(GOES.text() + " " * notices.LONGEST, BALANCE.text()))
    told = heard()
    until(lambda: "worker-02" in told.read())
    began = time.monotonic()
    while time.monotonic() - began < 0.8:
        assert told.read() == {"worker-02": BALANCE}
        time.sleep(0.02)


def test_a_slow_node_is_not_waited_for_and_half_a_line_is_no_notice(ssh: Ssh, heard: Callable[[], Notices]) -> None:
    text = GOES.text()
    ssh.does("worker-01", f"printf %s '{text[:20]}'; sleep 1; echo '{text[20:]}'; exec sleep 60")
    began = time.monotonic()
    told = heard()
    assert told.read() == {}
    assert time.monotonic() - began < 0.9
    until(lambda: told.read() == {"worker-01": GOES})
    assert time.monotonic() - began >= 0.9


def test_nothing_is_left_after_close(ssh: Ssh) -> None:
    ssh.does("worker-01", "trap '' TERM HUP INT; while true; do sleep 0.1; done")
    ssh.does("worker-02", "exit 255")
    told = Notices(ROSTER)
    until(lambda: len(ssh.calls("worker-01")) == 1)
    told.read()
    told.close()
    assert not Path(f"/proc/{ssh.calls('worker-01')[0]}").exists()


def loop(path: Path, stdout: int) -> subprocess.Popen[bytes]:
    """Run what runs on a node, for a file of this test's."""
    line = notices._LOOP.replace(notices.PATH, str(path)).replace("sleep 2", "sleep 0.05")
    return subprocess.Popen(["sh", "-c", line], stdout=stdout, stderr=subprocess.PIPE)


def test_what_runs_on_a_node_prints_the_file_and_ends_with_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "notice.json"
    with loop(path, subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"\n"
        path.write_text(GOES.text() + "\n")
        until(lambda: parse(process.stdout.readline()) == GOES)
        path.write_bytes(b"x" * 10_000)
        until(lambda: len(process.stdout.readline()) == notices.LONGEST + 1)
        process.stdout.close()
        process.wait(5)
        assert len(process.stderr.read()) < 200


def test_all_who_name_the_file_mean_the_same() -> None:
    script = (ROOT / "infra/cluster/files/notice.sh").read_text()
    assert f"NOTICE=${{NOTICE:-{notices.PATH}}}" in script
    assert set(re.findall(r"tell ([a-z]+) ", script)) == set(notices.KINDS)
    folder = os.path.dirname(notices.PATH)
    assert f"draco_notices: {folder} " in (ROOT / "ansible/group_vars/all.yml").read_text()
    assert f"/run/sshd {folder}\n" in (ROOT / "draco/cluster/netns_node.sh").read_text()
