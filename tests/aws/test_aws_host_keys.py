"""A node's host key comes from its console, whatever else that shows; a console speaks for its own node only."""

import base64
import time
from collections.abc import Callable, Iterator
from typing import Any

import moto_in_process
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto_in_process import REGION, Aws, error

from draco.cluster.aws import host_keys
from draco.cluster.aws.host_keys import host_key
from draco.errors import MissingError, NotConfiguredError

BEGIN, END = "-----BEGIN SSH HOST KEY KEYS-----", "-----END SSH HOST KEY KEYS-----"
INSTANCES = {"head": "i-0a", "worker-01": "i-0b", "worker-02": "i-0c"}
BOOT = """\
[    0.000000] Linux version 6.1.0 (mockbuild@ip-10-0-44-220) (gcc 11.4.1)\r
[   11.120000] cloud-init[1620]: Cloud-init v. 22.2.2 running 'modules:final' at Mon, 23 Nov 2026 10:00:00 +0000.\r
ci-info: | ec2-user | 0a:0b:0c |\r
<14>Nov 23 10:00:01 cloud-init: #############################################################\r
<14>Nov 23 10:00:01 cloud-init: -----BEGIN SSH HOST KEY FINGERPRINTS-----\r
<14>Nov 23 10:00:01 cloud-init: 256 SHA256:ppTJLXbVSpm6Yr3H5Ln8TTmP0QzqhFQmRzHzvSpbrgc root@ip-10-87-0-9 (ED25519)\r
<14>Nov 23 10:00:01 cloud-init: -----END SSH HOST KEY FINGERPRINTS-----\r
"""


def public(seed: int) -> str:
    """Return the text of some machine's key."""
    body = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes([seed]) * 32
    return f"ssh-ed25519 {base64.b64encode(body).decode()}"


def block(*keys: str, end: str = "\r\n") -> str:
    """Return what cloud-init prints."""
    other = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBA== root@ip-10-87-0-9"
    return end.join([BEGIN, other, *(f"{key} root@ip-10-87-0-9" for key in keys), END, ""])


keys = st.integers(0, 255).map(public)
noise = st.text(st.characters(codec="latin-1"), max_size=200).filter(lambda text: "-----" not in text)
endings = st.sampled_from(["\n", "\r\n", "\r\r\n"])


def test_the_key_is_found_in_what_a_real_boot_prints() -> None:
    assert host_key(
        BOOT + block(public(1)) + "[   13.5] cloud-init[1620]: Cloud-init finished at 10:00:02\r\n"
    ) == public(1)


@given(noise, keys, noise, endings)
def test_the_key_is_found_wherever_the_block_is(before: str, key: str, after: str, end: str) -> None:
    assert host_key(before + block(key, end=end) + after) == key


@given(noise, keys, keys, noise)
def test_after_a_reboot_the_last_complete_block_counts(before: str, old: str, new: str, after: str) -> None:
    assert host_key(before + block(old) + before + block(new) + after) == new
    assert host_key(before + block(new) + after + block(old)[: -len(END) - 2]) == new, "the last is not complete yet"


@given(noise, keys, st.integers(2, 4))
def test_a_console_that_repeats_itself_says_the_same(before: str, key: str, times: int) -> None:
    assert host_key((before + block(key)) * times) == key


@given(noise, keys, noise, st.data())
def test_a_console_that_is_cut_off_tells_the_whole_key_or_none(before: str, key: str, after: str, data: Any) -> None:
    console = before + block(key) + after
    start = data.draw(st.integers(0, len(console)))
    stop = data.draw(st.integers(start, len(console)))
    whole = start <= len(before) and stop >= console.index(END) + len(END)
    assert host_key(console[start:stop]) == (key if whole else None)


@given(
    st.lists(
        st.one_of(st.sampled_from([BEGIN, END, "ssh-ed25519 ", "\n", " ", "\r\n", public(1), public(2)]), st.text())
    ).map("".join)
)
def test_no_text_is_too_strange_to_read_and_only_a_whole_key_comes_from_it(text: str) -> None:
    assert host_key(text) in (None, public(1), public(2))


@pytest.mark.parametrize(
    "body",
    [
        "",
        public(1)[:-1],
        public(1) + "A",
        public(1).replace("ssh-ed25519 ", "ssh-ed25519  "),
        public(1).replace("ssh-ed25519 ", "ssh-rsa "),
        "x" + public(1),
        f"@cert-authority,{public(1)}",
        "ssh-ed25519 " + "A" * 68,
        "ssh-ed25519 " + "=" * 68,
        f"{public(1)}\n{public(2)}",
        public(1).replace(" ", "\n"),
    ],
    ids=["nothing", "short", "long", "two spaces", "another type", "part of a word", "marked", "no key inside",
         "no base64", "two keys", "two lines"],
)  # fmt: skip
def test_what_is_not_exactly_one_key_is_none(body: str) -> None:
    assert host_key(f"{BEGIN}\n{body}\n{END}\n") is None


def test_the_last_block_counts_even_if_it_is_useless() -> None:
    assert host_key(block(public(1)) + block("ssh-ed25519 garbage")) is None


def test_a_key_outside_a_block_is_none() -> None:
    assert host_key(f"{public(1)}\n{BEGIN}\n{END}\n{public(1)}\n") is None
    assert host_key(f"{END}\n{public(1)}\n{BEGIN}\n") is None


def test_known_hosts_has_a_line_for_each_node_with_all_its_addresses() -> None:
    text = host_keys.known_hosts(
        {"head": ("203.0.113.5", "10.87.0.4"), "worker-01": ("10.87.0.5", None)},
        {"worker-01": public(2), "head": public(1)},
    )
    assert text == f"head,203.0.113.5,10.87.0.4 {public(1)}\nworker-01,10.87.0.5 {public(2)}\n"


@pytest.fixture(scope="module", autouse=True)
def _clients() -> Iterator[None]:
    with moto_in_process.clients() as patch:
        patch.setattr(host_keys, "_POLL_S", 0.01)
        yield


@pytest.fixture
def aws() -> Iterator[Aws]:
    with moto_in_process.aws() as made:
        yield made


def shows(aws: Aws, console: Callable[[str, bool], str | dict[str, Any] | None]) -> None:
    """Let consoles show what `console` returns for an instance and whether its latest output was asked for."""

    def give(sent: dict[str, str]) -> dict[str, Any]:
        told = console(sent["InstanceId"], sent.get("Latest") == "true")
        if isinstance(told, dict):
            return told
        return {} if told is None else {"Output": base64.b64encode(told.encode()).decode()}

    aws.answer("ec2", "GetConsoleOutput", give)


def collect(limit_s: float = 10) -> tuple[dict[str, str], list[str]]:
    said: list[str] = []
    return host_keys.collect(REGION, INSTANCES, said.append, limit_s), said


def number(instance: str) -> int:
    return int(instance[2:], 16)


def test_every_node_has_the_key_of_its_own_console(aws: Aws) -> None:
    shows(aws, lambda instance, latest: BOOT + block(public(number(instance))))
    found, said = collect()
    assert found == {"head": public(10), "worker-01": public(11), "worker-02": public(12)}
    assert list(found) == list(INSTANCES)
    assert said == []


def test_nodes_that_boot_are_waited_for(aws: Aws) -> None:
    asked: dict[str, int] = dict.fromkeys(INSTANCES.values(), 0)
    slow = {"i-0a": 1, "i-0b": 3, "i-0c": 5}
    whole = BOOT + block(public(7))

    def console(instance: str, latest: bool) -> str | dict[str, Any] | None:
        asked[instance] += 1
        stages: list[Any] = [error("InvalidInstanceID.NotFound"), None, "", whole[: len(whole) // 2], whole[:-4]]
        return whole if asked[instance] > slow[instance] else stages[asked[instance] - 1]

    shows(aws, console)
    found, said = collect()
    assert set(found.values()) == {public(7)}
    assert said[0] == "waiting for head's host key and 2 more"
    assert said[-1] == "waiting for worker-02's host key"
    assert asked == {"i-0a": 2, "i-0b": 4, "i-0c": 6}, "nobody is asked again who has told"


@pytest.mark.parametrize("code", ["UnsupportedOperation", "InvalidParameter"])
def test_machines_that_cannot_tell_their_latest_output_are_asked_without(aws: Aws, code: str) -> None:
    shows(aws, lambda instance, latest: error(code) if latest else block(public(1)))
    assert collect()[0] == dict.fromkeys(INSTANCES, public(1))


def test_a_worker_that_shows_others_keys_and_names_vouches_for_itself_alone(aws: Aws) -> None:
    lies = f"head {public(66)}\nhead,10.87.0.4 {public(66)}\n" + block(public(66)) + f"i-0a: {block(public(66))}"
    shows(aws, lambda instance, latest: lies if instance == "i-0b" else block(public(1)))
    assert collect()[0] == {"head": public(1), "worker-01": public(66), "worker-02": public(1)}


def test_a_node_that_ends_meanwhile_is_named_with_the_reason(aws: Aws) -> None:
    reason = "Server.SpotInstanceTermination: Spot instance termination"
    shows(aws, lambda instance, latest: "" if instance == "i-0b" else block(public(1)))
    ended = {"InstanceId": "i-0b", "State": {"Name": "terminated"}, "StateReason": {"Message": reason}}
    aws.answer("ec2", "DescribeInstances", lambda sent: {"Reservations": [{"Instances": [ended]}]})
    with pytest.raises(NotConfiguredError) as caught:
        collect()
    assert str(caught.value) == f"worker-01: i-0b was terminated before it told its host key: {reason}"


def test_at_the_limit_the_silent_nodes_are_named_and_what_to_look_at(aws: Aws) -> None:
    shows(aws, lambda instance, latest: block(public(1)) if instance == "i-0a" else "Kernel panic")
    start = time.monotonic()
    with pytest.raises(NotConfiguredError) as caught:
        collect(limit_s=0.05)
    assert time.monotonic() - start < 5
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["worker-01", "worker-02"]
    assert "aws ec2 get-console-output --region us-east-1 --instance-id i-0b" in lines[0]


def test_a_console_that_may_not_be_read_is_an_error(aws: Aws) -> None:
    shows(aws, lambda instance, latest: error("UnauthorizedOperation"))
    with pytest.raises(MissingError, match="head: reading the console of i-0a: these credentials may not"):
        collect()
