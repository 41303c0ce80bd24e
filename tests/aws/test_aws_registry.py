"""The image reaches the cluster's repository once, under a name that says what it is, and leaves no login behind."""

import base64
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import moto_in_process
import pytest
from moto_in_process import REGION, Aws

from draco.cluster.aws import registry
from draco.cluster.aws.account import client
from draco.errors import MissingError, NotConfiguredError

HOST = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
URL = f"{HOST}/draco-dev"
COMMIT = "0123456789abcdef" * 2 + "01234567"
IMAGE = "ab" * 32
DIGEST = f"sha256:{'cd' * 32}"
PUSHED = """\
The push refers to repository [{url}]
aaaaaaaaaaaa: Preparing
bbbbbbbbbbbb: Preparing
bbbbbbbbbbbb: Waiting
aaaaaaaaaaaa: Layer already exists
bbbbbbbbbbbb: Pushed
{tag}: digest: {digest} size: 1234
"""
DOCKER = f"""\
#!{sys.executable}
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
config = os.environ.get("DOCKER_CONFIG")
if config:
    (here / "config.json").write_text(pathlib.Path(config, "config.json").read_text())
    (here / "mode").write_text(oct(pathlib.Path(config, "config.json").stat().st_mode & 0o777))
    (here / "contexts").write_text(str(pathlib.Path(config, "contexts").exists()))
    (here / "folder").write_text(config)
with open(here / "log", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
answer = json.loads((here / "answers.json").read_text()).get(sys.argv[1])
if answer:
    sys.stdout.write(answer.get("stdout", ""))
    sys.stderr.write(answer.get("stderr", ""))
    sys.exit(answer.get("code", 0))
"""


class Docker:
    """A stand-in for the docker command, first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers: dict[str, dict[str, Any]] = {}
        script = folder / "docker"
        script.write_text(DOCKER)
        script.chmod(0o755)
        self.has(version="0.2.0", revision=COMMIT)
        self.say("push", PUSHED.format(url=URL, tag="0.2.0-0123456789ab", digest=DIGEST))

    def say(self, command: str, stdout: str = "", stderr: str = "", code: int = 0) -> None:
        self.answers[command] = {"stdout": stdout, "stderr": stderr, "code": code}
        (self.folder / "answers.json").write_text(json.dumps(self.answers))

    def has(self, identity: str = f"sha256:{IMAGE}", digests: tuple[str, ...] = (), **labels: str) -> None:
        full = {f"org.opencontainers.image.{key}": value for key, value in labels.items()}
        self.say("image", json.dumps([{"Id": identity, "Config": {"Labels": full}, "RepoDigests": digests}]))

    @property
    def ran(self) -> list[str]:
        log = self.folder / "log"
        return [line for line in log.read_text().splitlines() if not line.startswith("image ")] if log.exists() else []


@pytest.fixture(scope="module", autouse=True)
def _clients() -> Iterator[None]:
    with moto_in_process.clients():
        yield


@pytest.fixture
def aws() -> Iterator[Aws]:
    with moto_in_process.aws() as made:
        client("ecr", REGION).create_repository(repositoryName="draco-dev")
        yield made


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    return Docker(folder)


def push() -> tuple[str, list[str]]:
    said: list[str] = []
    return registry.push(REGION, URL, "draco:latest", said.append), said


def hold(tag: str, image: str) -> str:
    """Put an image into the repository; return its manifest's digest, which moto makes from the layers."""
    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"digest": f"sha256:{image}", "size": 1}, "layers": [{"digest": f"sha256:{image[::-1]}"}],
    }  # fmt: skip
    held = client("ecr", REGION).put_image(repositoryName="draco-dev", imageManifest=json.dumps(manifest), imageTag=tag)
    return str(held["image"]["imageId"]["imageDigest"])


def test_the_image_is_pushed_by_version_and_commit_and_named_by_digest(aws: Aws, docker: Docker) -> None:
    name, said = push()
    assert name == f"{URL}@{DIGEST}"
    assert docker.ran == [f"tag draco:latest {URL}:0.2.0-0123456789ab", f"push {URL}:0.2.0-0123456789ab"]
    assert said == ["pushing the image", "pushing the image: 1 of 2 layers", "pushing the image: 2 of 2 layers"]


def test_an_image_that_is_there_is_not_pushed(aws: Aws, docker: Docker) -> None:
    digest = hold("0.2.0-0123456789ab", IMAGE)
    assert push() == (f"{URL}@{digest}", [])
    assert docker.ran == []


def test_the_second_build_of_a_commit_is_pushed_by_a_tag_of_its_own(aws: Aws, docker: Docker) -> None:
    hold("0.2.0-0123456789ab", "ee" * 32)
    assert push()[0] == f"{URL}@{DIGEST}"
    assert docker.ran[-1] == f"push {URL}:0.2.0-0123456789ab-abababababab"
    digest = hold("0.2.0-0123456789ab-abababababab", IMAGE)
    assert push()[0] == f"{URL}@{digest}"
    assert len(docker.ran) == 2, "not pushed again"


@pytest.mark.parametrize("revision", [f"{COMMIT}-changed", "unknown", ""])
def test_an_image_of_no_commit_is_known_by_its_own_id(aws: Aws, docker: Docker, revision: str) -> None:
    docker.has(version="0.2.0", revision=revision)
    push()
    assert docker.ran[-1] == f"push {URL}:0.2.0-abababababab"


def test_an_engine_that_calls_an_image_by_its_manifest_is_understood(aws: Aws, docker: Docker) -> None:
    digest = hold("0.2.0-0123456789ab", "ee" * 32)
    docker.has(identity=digest, version="0.2.0", revision=COMMIT)
    assert push() == (f"{URL}@{digest}", [])


def test_a_tag_of_an_image_that_another_one_holds_is_an_error(aws: Aws, docker: Docker) -> None:
    docker.has(version="0.2.0", revision="unknown")
    hold("0.2.0-abababababab", "ee" * 32)
    with pytest.raises(NotConfiguredError, match=r"has another image by its tag 0\.2\.0-abababababab"):
        push()


def test_the_digest_is_found_where_push_does_not_say_it(aws: Aws, docker: Docker) -> None:
    docker.say("push", "Writing manifest to image destination\n")
    docker.has(digests=("draco@sha256:" + "11" * 32, f"{URL}@{DIGEST}"), version="0.2.0", revision=COMMIT)
    assert push()[0] == f"{URL}@{DIGEST}"
    docker.has(version="0.2.0", revision=COMMIT)
    with pytest.raises(NotConfiguredError, match="did not say by which digest"):
        push()


def test_the_login_is_given_to_one_push_and_left_nowhere(aws: Aws, docker: Docker, tmp_path: Path) -> None:
    push()
    config = json.loads((docker.folder / "config.json").read_text())
    user, _, password = base64.b64decode(config["auths"][HOST]["auth"]).decode().partition(":")
    assert user == "AWS"
    assert password
    assert list(config) == ["auths"], "no credential store that would keep it"
    assert (docker.folder / "mode").read_text() == "0o600"
    assert not Path((docker.folder / "folder").read_text()).exists()
    assert not (tmp_path / ".docker").exists()
    assert password not in (docker.folder / "log").read_text()


def test_the_engine_that_the_user_chose_is_used(aws: Aws, docker: Docker, tmp_path: Path) -> None:
    own = tmp_path / ".docker"
    (own / "contexts").mkdir(parents=True)
    (own / "config.json").write_text(json.dumps({"currentContext": "far", "credsStore": "keychain"}))
    push()
    config = json.loads((docker.folder / "config.json").read_text())
    assert config["currentContext"] == "far"
    assert "credsStore" not in config
    assert (docker.folder / "contexts").read_text() == "True"
    assert json.loads((own / "config.json").read_text()) == {"currentContext": "far", "credsStore": "keychain"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"currentContext": 3}'])
def test_a_strange_configuration_of_dockers_is_no_hindrance(
    aws: Aws, docker: Docker, tmp_path: Path, text: str
) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text(text)
    assert push()[0] == f"{URL}@{DIGEST}"


def test_what_the_registry_refuses_is_said_in_its_words(aws: Aws, docker: Docker) -> None:
    docker.say("push", "aaaaaaaaaaaa: Preparing\n", "WARNING: x\ndenied: not authorized to perform ecr:PutImage\n", 1)
    with pytest.raises(NotConfiguredError, match=r"0123456789ab: docker push: denied: not authorized to perform ecr:P"):
        push()
    docker.say("push", code=125)
    with pytest.raises(NotConfiguredError, match="docker push: exit code 125"):
        push()
    docker.say("tag", stderr="Error: no space left on device\n", code=1)
    with pytest.raises(MissingError, match="docker tag: Error: no space left"):
        push()


def test_a_repository_that_is_gone_is_said(aws: Aws, docker: Docker) -> None:
    client("ecr", REGION).delete_repository(repositoryName="draco-dev")
    with pytest.raises(NotConfiguredError, match=r"draco-dev: asking for the tag .*: RepositoryNotFoundException"):
        push()


def test_an_image_that_was_not_built_is_said(aws: Aws, docker: Docker) -> None:
    docker.say("image", stderr="Error: No such image: draco:latest\n", code=1)
    with pytest.raises(MissingError, match="draco:latest: there is no such image: make image"):
        push()


def test_a_machine_without_an_engine_is_told(aws: Aws, docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    docker.say("image", stderr="Cannot connect to the Docker daemon at unix:///var/run/docker.sock.\n", code=1)
    with pytest.raises(MissingError, match="no Docker Engine answers"):
        push()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingError, match="there is no command docker"):
        push()


Put = Callable[..., None]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Return `put(name, stdout, stderr, code)`, which makes a scanner; nothing else is on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name: str, stdout: str = "", stderr: str = "", code: int = 0) -> None:
        script = f"import sys\nsys.stdout.write({stdout!r})\nsys.stderr.write({stderr!r})\nsys.exit({code})\n"
        (tmp_path / name).write_text(f"#!{sys.executable}\n{script}")
        (tmp_path / name).chmod(0o755)

    return make


def of_trivy(*found: tuple[str, str, str]) -> str:
    keys = ("VulnerabilityID", "PkgName", "InstalledVersion")
    return json.dumps(
        {"Results": [{"Target": "debian"}, {"Vulnerabilities": [dict(zip(keys, one, strict=True)) for one in found]}]}
    )


def test_without_a_scanner_nothing_is_said(put: Put) -> None:
    assert registry.scan("draco:latest") is None


def test_trivys_findings_are_one_sentence(put: Put) -> None:
    put(
        "trivy",
        of_trivy(("CVE-2026-1", "openssl", "3.0.1"), ("CVE-2026-2", "zlib", "1.2"), ("CVE-2026-2", "zlib", "1.2")),
    )
    assert registry.scan("draco:latest") == (
        "trivy: 2 critical vulnerabilities: CVE-2026-1 in openssl 3.0.1, CVE-2026-2 in zlib 1.2"
    )


def test_many_findings_are_counted_and_the_first_are_named(put: Put) -> None:
    put("trivy", of_trivy(*((f"CVE-{i}", "x", "1") for i in range(7))))
    assert (registry.scan("i") or "").endswith("CVE-4 in x 1 and 2 more")


def test_grypes_critical_findings_are_picked_out(put: Put) -> None:
    matches = [
        {"vulnerability": {"id": f"CVE-{level}", "severity": level}, "artifact": {"name": "glibc", "version": "2.36"}}
        for level in ("Critical", "High")
    ]
    put("grype", json.dumps({"matches": matches}))
    assert registry.scan("draco:latest") == "grype: 1 critical vulnerability: CVE-Critical in glibc 2.36"


@pytest.mark.parametrize(
    ("scanner", "report"), [("trivy", "{}"), ("trivy", '{"Results": null}'), ("grype", '{"matches": []}')]
)
def test_a_clean_image_is_called_clean(put: Put, scanner: str, report: str) -> None:
    put(scanner, report)
    assert registry.scan("draco:latest") == f"{scanner}: no critical vulnerabilities"


@pytest.mark.parametrize("report", ["", "no json", "[]", "{}", '{"matches": [{}]}'])
def test_a_report_that_cannot_be_read_is_not_taken_for_clean(put: Put, report: str) -> None:
    put("grype", report)
    assert registry.scan("draco:latest") == "grype: its report is none that Draco can read; draco:latest is not scanned"


def test_a_scanner_that_fails_is_not_taken_for_clean(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("trivy", '{"Results": []}', "INFO x\nFATAL cannot download the database\n", 1)
    assert registry.scan("draco:latest") == (
        "trivy: failed: FATAL cannot download the database; draco:latest is not scanned"
    )
    (Path(os.environ["PATH"]) / "trivy").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    monkeypatch.setattr(registry, "_SCAN_LIMIT_S", 0.2)
    assert (registry.scan("draco:latest") or "").startswith("trivy: did not finish in ")
