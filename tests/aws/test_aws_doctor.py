"""`make doctor`: each thing that can be amiss is found, named and followed by what to do."""

import io
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import boto3
import fake_account
import pytest
from botocore.config import Config
from fake_aws import Fake
from rich.console import Console

from draco.cluster import configure
from draco.cluster.aws import account, doctor, machine_images
from draco.cluster.aws.cost.quotas import Quota
from draco.cluster.aws.doctor import Check
from draco.cluster.aws.settings import Settings
from draco.errors import MissingError

REGION = "us-east-1"
SETTINGS = Settings(region=REGION, ssh_cidr="198.51.100.7/32")
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
fake, aws = fake_account.fake, fake_account.aws
AT_AWS = ("credentials", "clock", "EC2", "EFS", "ECR", "quotas")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return `tool(name, script)`: make a command; there are no others on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()

    def tool(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return tool


@pytest.fixture
def sound(tools: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has everything."""
    tools("terraform", """echo '{"terraform_version": "1.11.4"}'""")
    tools("ssh", "")
    tools("ssh-keygen", "")
    tools("docker", """case $1 in version) echo 28.0;; *) echo '[{"Id": "sha256:0123456789abcdef"}]';; esac""")
    monkeypatch.setattr(configure, "require", lambda: None)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No region and no credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    account.client.cache_clear()
    yield
    account.client.cache_clear()


def found(settings: Settings = SETTINGS) -> dict[str, Check]:
    return {check.name: check for check in doctor.checks(settings, "draco:latest")}


# This machine


@pytest.mark.parametrize(
    ("script", "ok", "told"),
    [
        ("""echo '{"terraform_version": "1.10.0"}'""", True, "1.10.0"),
        ("""echo '{"terraform_version": "1.12.0-beta1"}'; echo a warning >&2""", True, "1.12.0-beta1"),
        ("""echo '{"terraform_version": "2.0.0"}'""", True, "2.0.0"),
        ("""echo '{"terraform_version": "1.9.8"}'""", False, "is 1.9.8"),
        ("echo Terraform v0.11.1", False, "its version cannot be told"),
        ("echo '[]'", False, "its version cannot be told"),
        ("echo broken configuration >&2; exit 1", False, "broken configuration"),
        ("exit 3", False, "terraform ended with 3"),
        (None, False, "there is no command terraform"),
    ],
    ids=["least", "beta", "newer", "older", "ancient", "strange", "broken", "silent", "none"],
)
def test_terraform_must_be_there_and_new_enough(
    tools: Callable[[str, str], None], script: str | None, ok: bool, told: str
) -> None:
    if script is not None:
        tools("terraform", script)
    check = next(doctor.checks(SETTINGS, "draco:latest"))
    assert (check.name, check.ok, check.found) == ("terraform", ok, told)
    assert bool(check.fix) is not ok


def test_a_bare_machine_lacks_everything_and_is_told_how_to_get_it(
    tools: Callable[[str, str], None], nowhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise MissingError("ansible is not in this virtual environment; make setup EXTRAS=cluster")

    monkeypatch.setattr(configure, "require", missing)
    checks = found(Settings(ssh_cidr="198.51.100.7/32"))
    for name in ("terraform", "ansible", "ssh", "ssh-keygen", "docker", "region"):
        assert checks[name].ok is False
        assert checks[name].fix
    assert checks["ansible"] == Check(
        "ansible", False, "ansible is not in this virtual environment", "make setup EXTRAS=cluster"
    )
    assert checks["image"] == Check("image", None, "cannot tell: no Docker Engine")
    assert {checks[name].ok for name in AT_AWS} == {None}


def test_an_engine_that_does_not_answer_is_told_from_an_image_that_is_not_built(
    sound: None, tools: Callable[[str, str], None], nowhere: None
) -> None:
    tools("docker", "echo Cannot connect to the Docker daemon >&2; exit 1")
    assert (found()["docker"].found, found()["image"].ok) == ("Cannot connect to the Docker daemon", None)
    tools("docker", "case $1 in version) echo 28.0;; *) echo 'Error: No such image: x' >&2; exit 1;; esac")
    assert found()["docker"] == Check("docker", True, "engine 28.0")
    assert found()["image"] == Check("image", False, "draco:latest: there is no such image", "make image")


@pytest.mark.parametrize(
    ("date", "ok", "told"),
    [
        ("Sat, 31 Jan 2026 12:00:02 GMT", True, "2 s behind AWS"),
        ("Sat, 31 Jan 2026 11:55:00 GMT", True, "300 s ahead of AWS"),
        ("Sat, 31 Jan 2026 11:54:00 GMT", False, "360 s ahead of AWS"),
        ("Sat, 31 Jan 2026 13:00:00 GMT", False, "3600 s behind AWS"),
        ("yesterday", None, "cannot tell: AWS did not tell the time"),
        (None, None, "cannot tell: AWS did not tell the time"),
    ],
)
def test_a_clock_may_be_five_minutes_off(date: str | None, ok: bool | None, told: str) -> None:
    check = doctor.clock(date, NOW)
    assert (check.ok, check.found) == (ok, told)


@pytest.mark.parametrize(
    ("limit", "ok", "fix"),
    [(64, True, ""), (39, False, "--quota-code L-34B43A08 --desired-value 64"), (None, None, "docs/aws.md")],
    ids=["room", "short", "unknown"],
)
def test_quotas_are_enough_or_short_or_unknown(limit: int | None, ok: bool | None, fix: str) -> None:
    check = doctor.quota_check([Quota("spot vCPU", limit, 24, 40, "L-34B43A08")], REGION)
    assert check.ok is ok
    assert fix in check.fix
    assert check.found.startswith("spot vCPU: needs 40, 24 ")


def test_the_table_has_a_mark_for_each_check_and_what_to_do_only_where_something_is_amiss() -> None:
    out = io.StringIO()
    checks = [
        Check("one", True, "all is well", "never shown"),
        Check("two", False, "[SSL: NO] [red]amiss[/red]", "do this"),
        Check("three", None, "cannot tell"),
    ]
    Console(file=out, width=100).print(doctor.table(checks))
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert [line.split() for line in lines] == [
        ["✔", "one", "all", "is", "well"], ["✖", "two", "[SSL:", "NO]", "[red]amiss[/red]"], ["do", "this"],
        ["?", "three", "cannot", "tell"],
    ]  # fmt: skip


# The account


def test_all_is_well_where_all_is_well(sound: None, aws: Fake) -> None:
    checks = found()
    assert {name: check.ok for name, check in checks.items()} == dict.fromkeys(checks, True)
    assert list(checks)[-6:] == list(AT_AWS)
    assert checks["terraform"].found == "1.11.4"
    assert checks["image"].found == "draco:latest is 0123456789ab"
    assert checks["own address"].found == "198.51.100.7/32"
    assert aws.account in checks["credentials"].found
    assert "needs 12, 0 of 256 in use" in checks["quotas"].found


def test_the_region_of_the_shell_will_do(sound: None, aws: Fake) -> None:
    assert found(Settings())["region"] == Check("region", True, REGION)


def test_a_profile_that_does_not_exist_is_named(sound: None, nowhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    check = found(Settings(ssh_cidr="198.51.100.7/32"))["region"]
    assert check.ok is False
    assert "nobody" in check.found


def test_without_credentials_nothing_else_at_aws_can_be_told(sound: None, nowhere: None) -> None:
    checks = found()
    assert checks["credentials"].ok is False
    assert "no AWS credentials" in checks["credentials"].found
    assert "aws configure" not in checks["credentials"].found
    assert "aws configure" in checks["credentials"].fix
    assert {checks[name].ok for name in AT_AWS[1:]} == {None}


def test_an_aws_that_does_not_answer_is_no_matter_of_credentials(
    sound: None, nowhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setattr(account, "PATIENCE", Config(retries={"total_max_attempts": 1}))
    check = found()["credentials"]
    assert check.ok is False
    assert "AWS does not answer" in check.found
    assert "HTTPS_PROXY" in check.fix


def test_the_clock_is_judged_even_where_credentials_are_refused(sound: None, aws: Fake) -> None:
    aws.set_faults({"GetCallerIdentity": {"code": "SignatureDoesNotMatch"}})
    checks = found()
    assert (checks["credentials"].ok, checks["clock"].ok, checks["EC2"].ok) == (False, True, None)


@pytest.mark.parametrize(
    ("action", "name"),
    [("DescribeInstances", "EC2"), ("DescribeFileSystems", "EFS"), ("DescribeRepositories", "ECR")],
)
def test_a_service_that_may_not_be_asked_is_amiss_and_the_others_are_asked_all_the_same(
    sound: None, aws: Fake, action: str, name: str
) -> None:
    aws.set_faults({action: {"code": "AccessDenied", "message": f"no {action} for you"}})
    checks = found()
    assert checks[name].ok is False
    assert f"no {action} for you" in checks[name].found
    assert checks[name].fix == "docs/aws.md lists the permissions"
    assert checks["ECR" if name == "EC2" else "EC2"].ok is True


def test_short_quotas_are_amiss_and_unknown_ones_cannot_be_told(sound: None, aws: Fake) -> None:
    aws.set_quotas({"L-34B43A08": 5})
    assert found()["quotas"].ok is False
    assert "--desired-value 12" in found()["quotas"].fix
    aws.set_faults({"GetServiceQuota": {"code": "AccessDenied"}})
    assert found()["quotas"].ok is None


def test_a_type_that_does_not_exist_is_amiss(sound: None, aws: Fake) -> None:
    check = found(Settings(region=REGION, ssh_cidr="198.51.100.7/32", worker_types=("m9z.huge",)))["quotas"]
    assert check.ok is False
    assert "m9z.huge: us-east-1 has no such instance type" in check.found


def test_types_with_gpus_are_told_with_their_machine_image_and_need_an_image_for_them(
    sound: None, aws: Fake, tools: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = SETTINGS.model_copy(update={"worker_types": ("g5.xlarge",)})
    monkeypatch.setattr(machine_images, "newest", lambda region, name: f"ami-for-{name}")
    aws.set_quotas({"L-3819A6DF": 64})
    checks = found(asked)
    assert checks["GPUs"] == Check(
        "GPUs", True, "g5.xlarge: 4 vCPU and 1 x NVIDIA A10G of 22 GiB\nmachine image ami-for-g5.xlarge"
    )
    assert "spot vCPU (G and VT): needs 12, 0 of 64 in use" in checks["quotas"].found
    assert checks["torch"].ok is None
    for build, ok in (("cpu", False), ("cuda", True)):
        told = f"""[{{"Id": "sha256:0", "Config": {{"Labels": {{"draco.torch": "{build}"}}}}}}]"""
        tools("docker", f"case $1 in version) echo 28.0;; *) echo '{told}';; esac")
        assert (found(asked)["torch"].ok, found(asked)["torch"].fix) == (ok, "make image TORCH=cuda")
    assert {"GPUs", "torch"} & set(found()) == set()


# The own address


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, bytes], None]]:
    """Return `answer(status, body)`: what is said to whoever asks for the own address."""
    said: dict[str, tuple[int, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = said["now"]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("DRACO_CHECKIP_URL", f"http://127.0.0.1:{server.server_port}/")
        yield lambda status, body: said.update(now=(status, body))
        server.shutdown()
        thread.join()


def test_the_own_address_is_a_network_of_one(answering: Callable[[int, bytes], None]) -> None:
    answering(200, b"198.51.100.7\n")
    assert account.own_cidr() == "198.51.100.7/32"


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"2001:db8::1\n"), (200, b"<html>log in</html>"), (200, b"\xff\xfe"), (200, b""), (503, b"198.51.100.7")],
    ids=["IPv6", "a portal", "bytes", "nothing", "an error"],
)
def test_an_answer_that_is_no_ipv4_address_is_not_believed(
    answering: Callable[[int, bytes], None], status: int, body: bytes
) -> None:
    answering(status, body)
    with pytest.raises(MissingError, match="SET=ssh_cidr="):
        account.own_cidr()


@pytest.mark.parametrize("url", ["file:///etc/hostname", "http://127.0.0.1:9/", "nonsense"])
def test_where_nobody_answers_the_error_says_how_to_name_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRACO_CHECKIP_URL", url)
    with pytest.raises(MissingError, match="SET=ssh_cidr="):
        account.own_cidr()


def test_the_own_address_is_asked_for_only_where_none_is_set(
    sound: None, nowhere: None, answering: Callable[[int, bytes], None]
) -> None:
    answering(200, b"198.51.100.9")
    assert found(Settings())["own address"].found == "198.51.100.9/32"
    assert found(SETTINGS)["own address"].found == "198.51.100.7/32"
    answering(200, b"none")
    check = found(Settings())["own address"]
    assert (check.ok, check.fix) == (False, "SET=ssh_cidr=x.y.z.w/32 names it")
    assert check.found.endswith("(Expected 4 octets in 'none')")


def test_a_clock_is_compared_with_the_time_of_this_machine(
    sound: None, aws: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(hours=1)

    monkeypatch.setattr(doctor, "datetime", Late)
    assert found()["clock"].ok is False
