"""Terraform as Draco runs it: stopped once, waited for, and its faults told; with a stand-in that does as ordered."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from draco.cluster.aws import terraform
from draco.errors import DracoError, MissingError, NoCapacityError, NotConfiguredError, RefusedError

# Counts the SIGINTs it gets; the first ends it half a second later, as Terraform takes its time to save its state. In
# the shell, which is ready to be interrupted at once.
STAND_IN = """\
#!/bin/bash
trap 'echo >> interrupts' INT
source ./order
cat lines
while [[ ! -e interrupts && $SECONDS -lt $takes_s ]]; do sleep 0.02; done
if [[ -e interrupts ]]; then
    sleep 0.5
    cat last_words
    code=$code_if_stopped
fi
touch saved
exit "$code"
"""
WORKER = 'aws_instance.worker["worker-01"]'
CREATING = {"type": "apply_start", "hook": {"action": "create", "resource": {"addr": WORKER}}}


def error(summary: str, detail: str = "", address: str = "") -> dict[str, object]:
    return {
        "type": "diagnostic",
        "diagnostic": {"severity": "error", "summary": summary, "detail": detail, "address": address},
    }


def refused(code: str, address: str = "aws_instance.head") -> dict[str, object]:
    return error(f"creating EC2 Instance: api error {code}: AWS's own words", address=address)


HALTED = error("execution halted", address=WORKER)


class Ordered:
    """A folder in which the stand-in does as it was told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, []

    def to(self, *lines: object, takes_s: int = 0, code: int = 0, code_if_stopped: int = 1) -> "Ordered":
        said = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (self.folder / "lines").write_text("".join(f"{line}\n" for line in said))
        (self.folder / "last_words").write_text(json.dumps(HALTED) + "\n")
        (self.folder / "order").write_text(f"takes_s={takes_s} code={code} code_if_stopped={code_if_stopped}\n")
        return self

    def apply(self, limit_s: float = 60) -> None:
        terraform._run(self.folder, ["apply"], self.said.append, limit_s)

    @property
    def interrupts(self) -> int:
        path = self.folder / "interrupts"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ordered:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "terraform").write_text(STAND_IN)
    (tools / "terraform").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return Ordered(tmp_path)


def signalled(ordered: Ordered, *numbers: int) -> threading.Thread:
    """Send signals to this process once Terraform is at work, one after the other."""

    def send() -> None:
        while not any("worker-01" in line for line in ordered.said):
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.15)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_what_it_does_is_said(ordered: Ordered) -> None:
    ordered.to(CREATING).apply()
    assert ordered.said == [f"create {WORKER}"]
    assert ordered.interrupts == 0


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGINT, signal.SIGINT], [signal.SIGHUP, signal.SIGTERM]])
def test_however_often_the_user_asks_it_is_stopped_once_and_waited_for(ordered: Ordered, numbers: list[int]) -> None:
    thread = signalled(ordered, *numbers)
    with pytest.raises(KeyboardInterrupt):
        ordered.to(CREATING, takes_s=30).apply()
    thread.join()
    assert ordered.interrupts == 1
    assert (ordered.folder / "saved").exists()
    assert ordered.said[1:] == ["stopping: Terraform finishes what is under way and saves its state; please wait"]


def test_an_apply_that_takes_too_long_is_stopped_once_and_counts_as_no_capacity(ordered: Ordered) -> None:
    with pytest.raises(NoCapacityError, match=r'^aws_instance.worker\["worker-01"\]: no capacity within 1 s$'):
        ordered.to(CREATING, takes_s=30).apply(limit_s=1)
    assert ordered.interrupts == 1
    assert (ordered.folder / "saved").exists()


def test_ctrl_c_after_the_deadline_is_no_second_interrupt(ordered: Ordered) -> None:
    def send() -> None:
        while not any("taking too long" in line for line in ordered.said):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        ordered.to(CREATING, takes_s=30).apply(limit_s=0.5)
    thread.join()
    assert ordered.interrupts == 1


def test_what_ends_well_at_the_deadline_has_ended_well(ordered: Ordered) -> None:
    ordered.to(CREATING, takes_s=30, code_if_stopped=0).apply(limit_s=0.5)
    assert ordered.interrupts == 1


@pytest.mark.parametrize(
    ("lines", "kind", "said"),
    [
        ([refused("ReservationCapacityExceeded")], NoCapacityError, "aws_instance.head: ReservationCapacityExc"),
        ([refused("InsufficientInstanceCapacity")], NoCapacityError, "aws_instance.head: InsufficientInstanceCap"),
        ([refused("SpotMaxPriceTooLow"), refused("VcpuLimitExceeded")], NoCapacityError, "VcpuLimitExceeded"),
        ([refused("InsufficientInstanceCapacity"), refused("ExpiredToken")], MissingError, "credentials have expired"),
        ([refused("InsufficientInstanceCapacity"), error("odd")], NotConfiguredError, "odd"),
        ([refused("UnauthorizedOperation")], MissingError, "docs/aws.md lists what they need"),
        ([refused("RequestLimitExceeded")], NotConfiguredError, "try again in a minute"),
        ([error("No valid credential sources found")], MissingError, "no AWS credentials"),
        ([error("Error acquiring the state lock", "Lock Info:\n  Who:  ann@desk\n")], RefusedError, "(ann@desk)"),
        (["panic: out of memory"], NotConfiguredError, "exit code 1"),
    ],
)
def test_faults_are_told_as_what_they_are(
    ordered: Ordered, lines: list[object], kind: type[DracoError], said: str
) -> None:
    with pytest.raises(kind) as raised:
        ordered.to(*lines, code=1).apply()
    assert type(raised.value) is kind
    assert said in str(raised.value)
