"""The real draco-watch, which ends nodes, with stand-ins for the commands by which it sees and changes a machine."""

import os
import re
import shutil
import stat
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "infra" / "cluster"
WATCH = CLUSTER / "files" / "watch.sh"
NOTICE = WATCH.with_name("notice.sh")
TOOLS = ("bash", "cat", "chmod", "date", "find", "grep", "mkdir", "mv", "timeout", "touch", "xargs")  # the real ones
# What each command prints and returns unless a test says otherwise; every call is noted with its arguments.
QUIET = {
    "curl": "exit 28",  # the metadata service is silent
    "aws": "case $2 in describe-instances) echo i-0 i-1 ;; esac",
    "shutdown": "",
    "pgrep": "exit 1",
    "ss": "",
    "iptables": "",
}


def at(hours: float) -> str:
    """Return the time so many hours from now as the tag has it."""
    return (datetime.now(UTC) + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")


def tag(value: str) -> str:
    """Return what curl does where the instance has this tag; without a token the service says nothing."""
    return f"""
case "$*" in
    *"-X PUT"*/latest/api/token) echo TOKEN ;;
    *"aws-ec2-metadata-token: TOKEN"*/latest/meta-data/tags/instance/ExpiresAt) echo '{value}' ;;
    *) exit 22 ;;
esac"""


class Node:
    """A machine that the script sees: the agent's settings, its state and the commands that it calls."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.calls = folder / "calls"
        self.commands = folder / "bin"
        self.commands.mkdir()
        for name, does in QUIET.items():
            self.does(name, does)
        for tool in TOOLS:
            (self.commands / tool).symlink_to(str(shutil.which(tool)))
        self.settings = {
            "ROLE": "worker", "CLUSTER": "dev", "REGION": "us-west-2", "IDLE_MINUTES": "60", "EXPIRES_AT": at(4)
        }  # fmt: skip

    def does(self, name: str, script: str) -> None:
        path = self.commands / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {self.calls}\n{script}\n')
        path.chmod(stat.S_IRWXU)

    def watch(self, **settings: str) -> list[str]:
        """Run the script once; return the calls in their order that would change something."""
        self.calls.write_text("")
        environment = {
            **self.settings, **settings, "STATE": str(self.state), "METADATA": "http://metadata.invalid",
            "PATH": str(self.commands),
        }  # fmt: skip
        made = subprocess.run(
            ["/bin/bash", str(WATCH)], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert made.stderr == ""
        self.said = made.stdout
        return [
            " ".join(call.split()[:3]) for call in self.called() if call.startswith(("shutdown", "aws ec2 terminate"))
        ]

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines()

    def was_active(self, minutes_ago: float) -> None:
        self.state.mkdir(exist_ok=True)
        (self.state / "active").touch()
        then = time.time() - 60 * minutes_ago
        os.utime(self.state / "active", (then, then))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


DOWN = ["shutdown -h now"]
ALL_DOWN = ["aws ec2 terminate-instances", "shutdown -h now"]


@pytest.mark.parametrize("role", ["head", "worker"])
def test_nothing_happens_before_the_time(node: Node, role: str) -> None:
    node.does("curl", tag(at(1)))
    assert node.watch(ROLE=role) == []
    assert node.said == ""


def test_a_worker_ends_itself_when_the_cluster_has_expired(node: Node) -> None:
    node.does("curl", tag(at(-0.1)))
    assert node.watch() == DOWN
    assert "the cluster expired at" in node.said


def test_a_head_ends_all_nodes_and_then_itself(node: Node) -> None:
    node.does("curl", tag(at(-0.1)))
    assert node.watch(ROLE="head") == ALL_DOWN
    listed, ended = (call for call in node.called() if call.startswith("aws ec2"))
    assert "--region us-west-2" in listed
    assert "Name=tag:Project,Values=draco Name=tag:Cluster,Values=dev" in listed
    assert "--region us-west-2" in ended
    assert ended.endswith("--instance-ids i-0 i-1")
    made, written = (call for call in node.called() if call.startswith("aws logs"))
    assert made.startswith("aws logs create-log-stream --region us-west-2 --log-group-name /draco/dev ")
    assert made.split()[-1] == written.split()[8]  # the same stream
    assert ",message=the cluster expired at 20" in written


def test_a_head_that_cannot_end_the_others_still_ends_itself(node: Node) -> None:
    node.does("aws", "exit 255")
    assert node.watch(ROLE="head", EXPIRES_AT=at(-0.1)) == DOWN


def test_a_later_tag_is_an_extension(node: Node) -> None:
    node.does("curl", tag(at(3)))
    assert node.watch(EXPIRES_AT=at(-1)) == []


def test_an_earlier_tag_holds_too(node: Node) -> None:
    node.does("curl", tag(at(-1)))
    assert node.watch(EXPIRES_AT=at(3)) == DOWN


def test_a_silent_metadata_service_does_not_keep_a_node_up(node: Node) -> None:
    assert node.watch(EXPIRES_AT=at(1)) == []
    assert node.watch(EXPIRES_AT=at(-1)) == DOWN


def test_a_broken_note_of_the_time_is_passed_over(node: Node) -> None:
    node.state.mkdir()
    (node.state / "expires_at").touch()
    assert node.watch(EXPIRES_AT=at(1)) == []


def test_what_the_tag_last_said_holds_while_the_metadata_service_is_silent(node: Node) -> None:
    node.does("curl", tag(at(3)))
    node.watch(EXPIRES_AT=at(-1))
    node.does("curl", "exit 28")
    assert node.watch(EXPIRES_AT=at(-1)) == []
    node.does("curl", tag(at(-2)))
    node.watch(EXPIRES_AT=at(1))
    node.does("curl", "exit 28")
    assert node.watch(EXPIRES_AT=at(1)) == DOWN


@pytest.mark.parametrize("value", ["", "tomorrow", "<html>", "2026-11-23"])
def test_a_tag_that_is_no_time_counts_as_silence(node: Node, value: str) -> None:
    node.does("curl", tag(value))
    assert node.watch(EXPIRES_AT=at(1)) == []
    assert node.watch(EXPIRES_AT=at(-1)) == DOWN


def test_a_head_that_idles_ends_all_nodes(node: Node) -> None:
    node.was_active(minutes_ago=62)
    assert node.watch(ROLE="head") == ALL_DOWN
    assert "no run and no ssh session for 60 minutes" in node.said


def test_a_head_that_was_active_a_while_ago_stays(node: Node) -> None:
    node.was_active(minutes_ago=58)
    assert node.watch(ROLE="head") == []


def test_a_head_counts_from_its_start(node: Node) -> None:
    assert node.watch(ROLE="head") == []
    assert (node.state / "active").exists()


@pytest.mark.parametrize(
    ("command", "does"),
    [
        ("pgrep", '[[ "$*" == *10001*mpirun* ]] && echo "4711 mpirun -n 4"'),
        ("ss", '[[ "$*" == *established*:22* ]] && echo "0 0 10.87.0.4:22 203.0.113.7:50022"'),
    ],
    ids=["run", "ssh"],
)
def test_a_head_that_is_busy_stays_and_counts_anew(node: Node, command: str, does: str) -> None:
    node.was_active(minutes_ago=62)
    node.does(command, does)
    assert node.watch(ROLE="head") == []
    node.does(command, QUIET[command])
    assert node.watch(ROLE="head") == []


def test_what_waits_for_runs_to_keep_is_no_run(node: Node) -> None:
    node.was_active(minutes_ago=62)
    node.does("pgrep", 'echo "17 /opt/draco/bin/python -m draco head keep"')
    assert node.watch(ROLE="head") == ALL_DOWN


def test_a_head_may_idle_for_ever_where_it_is_told_so(node: Node) -> None:
    node.was_active(minutes_ago=10_000)
    assert node.watch(ROLE="head", IDLE_MINUTES="0") == []
    assert node.watch(ROLE="head", IDLE_MINUTES="0", EXPIRES_AT=at(-1)) == ALL_DOWN


def test_a_worker_does_not_judge_who_idles(node: Node) -> None:
    node.was_active(minutes_ago=10_000)
    assert node.watch() == []


@pytest.mark.parametrize("refused", ["describe-instances", "terminate-instances"])
def test_an_idle_head_that_cannot_end_its_workers_stays_to_try_again(node: Node, refused: str) -> None:
    node.was_active(minutes_ago=62)
    node.does("aws", f"[[ $2 == {refused} ]] && exit 254\n{QUIET['aws']}")
    assert DOWN[0] not in node.watch(ROLE="head")
    node.does("aws", QUIET["aws"])
    assert node.watch(ROLE="head") == ALL_DOWN


def test_the_trainer_is_kept_from_the_metadata_service(node: Node) -> None:
    node.does("iptables", '[[ "$*" != *-C* ]]')
    node.watch()
    (rule,) = [call for call in node.called() if "-I OUTPUT" in call]
    assert rule.endswith("-d 169.254.169.254 -m owner --uid-owner 10001 -j REJECT")
    node.does("iptables", "")
    node.watch()
    assert [call for call in node.called() if "-I OUTPUT" in call] == []


def test_a_node_without_iptables_ends_all_the_same(node: Node) -> None:
    (node.commands / "iptables").unlink()
    assert node.watch(EXPIRES_AT=at(-1)) == DOWN


def test_user_data_installs_both_scripts_with_their_settings_and_starts_them(node: Node, tmp_path: Path) -> None:
    node.does("systemctl", "")
    values = {
        "role": "head", "cluster": "dev", "region": "us-west-2", "idle_minutes": "60",
        "expires_at": "2026-11-23T14:00:00Z", "watch": WATCH.read_text(), "notice": NOTICE.read_text(),
    }  # fmt: skip
    text = re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], (CLUSTER / "user_data.sh.tftpl").read_text())
    for folder in ("/etc/systemd/system", "/usr/local/sbin"):
        (tmp_path / folder[1:]).mkdir(parents=True)
    script = tmp_path / "user_data"
    script.write_text(
        re.sub(r"(^cat >|^chmod 0755|(?<=draco-watch)) /(?=etc|usr)", rf"\1 {tmp_path}/", text, flags=re.MULTILINE)
    )
    subprocess.run(["/bin/bash", str(script)], env={"PATH": str(node.commands)}, check=True, timeout=30)
    for name, source in (("draco-watch", WATCH), ("draco-notice", NOTICE)):
        installed = tmp_path / "usr/local/sbin" / name
        assert installed.read_text().rstrip() == source.read_text().rstrip()
        assert os.access(installed, os.X_OK)
    settings = (tmp_path / "etc/draco-watch.env").read_text()
    assert settings == "ROLE=head\nCLUSTER=dev\nREGION=us-west-2\nIDLE_MINUTES=60\nEXPIRES_AT=2026-11-23T14:00:00Z\n"
    units = tmp_path / "etc/systemd/system"
    assert (
        "EnvironmentFile=/etc/draco-watch.env\nExecStart=/usr/local/sbin/draco-watch\n"
        in (units / "draco-watch.service").read_text()
    )
    assert "OnUnitActiveSec=1min" in (units / "draco-watch.timer").read_text()
    assert "ExecStart=/usr/local/sbin/draco-notice\nRestart=always\n" in (units / "draco-notice.service").read_text()
    assert node.called() == [
        "systemctl daemon-reload", "systemctl enable --now draco-watch.timer draco-notice.service",
    ]  # fmt: skip
