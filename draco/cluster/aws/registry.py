"""The trainer image at AWS: pushed to the cluster's own repository, and named by its digest from there on."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from draco.cluster import engine
from draco.cluster.aws.account import client, speaking
from draco.errors import MissingError, NotConfiguredError

_LABEL = "org.opencontainers.image"
_LAYER = re.compile(r"([0-9a-f]{12}): (.*)")
_THERE = ("Pushed", "Layer already exists", "Mounted from")
_DIGEST = re.compile(r"\bdigest: (sha256:[0-9a-f]{64})\b")
_MANIFESTS = ["application/vnd.docker.distribution.manifest.v2+json", "application/vnd.oci.image.manifest.v1+json",
              "application/vnd.oci.image.index.v1+json"]  # fmt: skip
_SCAN_LIMIT_S = 600
_MOST_NAMED = 5


def push(region: str, repository_url: str, image: str, say: Callable[[str], None]) -> str:
    """Push an image into a repository, unless it is there; return it as `<repository_url>@sha256:...`.

    Raises:
        MissingError: no engine, no such image, no permission.
        NotConfiguredError: the registry does not take it.
    """
    identity = engine.image_id(image).removeprefix("sha256:")
    labels = _inspected(image)["Config"].get("Labels") or {}
    for tag in tags(labels, identity):
        held = _held(region, repository_url, tag)
        if held is None:
            return f"{repository_url}@{_push(region, repository_url, tag, image, say)}"
        if f"sha256:{identity}" in held:
            return f"{repository_url}@{held[0]}"
    raise NotConfiguredError(f"{image}: {repository_url} has another image by its tag {tag}; delete that and try again")


def tags(labels: Mapping[str, str], identity: str) -> list[str]:
    """Return the tags that an image may have, best first. Tags cannot be moved, and a commit may be built twice.

    >>> tags({"org.opencontainers.image.version": "0.2.0", "org.opencontainers.image.revision": "ab" * 20}, "cd" * 32)
    ['0.2.0-abababababab', '0.2.0-abababababab-cdcdcdcdcdcd']
    >>> tags({"org.opencontainers.image.version": "0.2.0", "org.opencontainers.image.revision": "unknown"}, "cd" * 32)
    ['0.2.0-cdcdcdcdcdcd']
    """
    version = re.sub(r"[^\w.-]", "-", labels.get(f"{_LABEL}.version") or "unknown", flags=re.ASCII)
    commit = labels.get(f"{_LABEL}.revision", "")
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):  # built from a changed checkout, or from none
        return [f"{version}-{identity[:12]}"]
    return [f"{version}-{commit[:12]}", f"{version}-{commit[:12]}-{identity[:12]}"]


def scan(image: str) -> str | None:
    """Return a sentence on the critical vulnerabilities that a scanner here finds; None without a scanner."""
    scanner = next(filter(shutil.which, _SCANNERS), None)
    if scanner is None:
        return None
    arguments, read = _SCANNERS[scanner]
    try:
        made = subprocess.run(
            [scanner, *arguments, image], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=_SCAN_LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{scanner}: did not finish in {_SCAN_LIMIT_S // 60} minutes; {image} is not scanned"
    if made.returncode:
        return f"{scanner}: failed: {_last_line(made.stderr, made.returncode)}; {image} is not scanned"
    try:
        return _verdict(scanner, list(dict.fromkeys(read(json.loads(made.stdout)))))
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{scanner}: its report is none that Draco can read; {image} is not scanned"


def _verdict(scanner: str, found: Sequence[str]) -> str:
    if not found:
        return f"{scanner}: no critical vulnerabilities"
    named = ", ".join(found[:_MOST_NAMED]) + (f" and {len(found) - _MOST_NAMED} more" * (len(found) > _MOST_NAMED))
    return f"{scanner}: {len(found)} critical {'vulnerability' if len(found) == 1 else 'vulnerabilities'}: {named}"


def _of_trivy(report: Mapping[str, Any]) -> Iterator[str]:
    for result in report.get("Results") or []:
        for one in result.get("Vulnerabilities") or []:
            yield f"{one['VulnerabilityID']} in {one['PkgName']} {one['InstalledVersion']}"


def _of_grype(report: Mapping[str, Any]) -> Iterator[str]:
    for match in report["matches"]:
        if match["vulnerability"]["severity"] == "Critical":
            yield f"{match['vulnerability']['id']} in {match['artifact']['name']} {match['artifact']['version']}"


_SCANNERS: dict[str, tuple[list[str], Callable[[Mapping[str, Any]], Iterator[str]]]] = {
    "trivy": (["image", "--quiet", "--scanners", "vuln", "--severity", "CRITICAL", "--format", "json"], _of_trivy),
    "grype": (["--quiet", "--output", "json"], _of_grype),
}


def _held(region: str, repository_url: str, tag: str) -> tuple[str, str] | None:
    """Return the manifest's digest and the image's id behind a tag in the repository; None if the tag is free."""
    with speaking(f"{repository_url}: asking for the tag {tag}"):
        told = client("ecr", region).batch_get_image(
            repositoryName=repository_url.partition("/")[2], imageIds=[{"imageTag": tag}],
            acceptedMediaTypes=_MANIFESTS,
        )  # fmt: skip
    for image in told.get("images", []):
        manifest = json.loads(image["imageManifest"])
        return str(image["imageId"]["imageDigest"]), str(manifest.get("config", {}).get("digest", ""))
    return None


def _push(region: str, repository_url: str, tag: str, image: str, say: Callable[[str], None]) -> str:
    """Push an image and return its manifest's digest."""
    name = f"{repository_url}:{tag}"
    with _logged_in(region, repository_url.partition("/")[0]) as environment:
        _docker("tag", image, name, about=name)
        said = _pushed(name, environment, say)
    if found := _DIGEST.search(said):
        return found[1]
    for known in _inspected(name).get("RepoDigests", []):  # Podman does not say
        if known.startswith(f"{repository_url}@"):
            return str(known).partition("@")[2]
    raise NotConfiguredError(f"{name}: docker push did not say by which digest it is known now; try again")


def _pushed(name: str, environment: Mapping[str, str], say: Callable[[str], None]) -> str:
    """Run docker push and return its output."""
    said: list[str] = []
    layers: dict[str, bool] = {}
    say("pushing the image")
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            ["docker", "push", name], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            text=True,
        ) as process:  # fmt: skip
            for line in process.stdout or ():
                said.append(line)
                if layer := _LAYER.match(line):
                    layers[layer[1]] = layer[2].startswith(_THERE)
                if layer and layers[layer[1]]:
                    say(f"pushing the image: {sum(layers.values())} of {len(layers)} layers")
        if process.returncode:
            errors.seek(0)
            raise NotConfiguredError(f"{name}: docker push: {_last_line(errors.read(), process.returncode)}")
    return "".join(said)


@contextmanager
def _logged_in(region: str, host: str) -> Iterator[dict[str, str]]:
    """Make the environment in which the docker command is logged in; it is gone afterwards, and so is the password.

    The login is written into a configuration of its own, not given to `docker login`: that would put it into the
    system's keychain, where there is one, and replace it in the user's configuration.
    """
    with speaking("asking AWS for a login to the image repository"):
        token = client("ecr", region).get_authorization_token()["authorizationData"][0]["authorizationToken"]
    own = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    with tempfile.TemporaryDirectory(prefix="draco-registry-") as folder:
        config: dict[str, Any] = {"auths": {host: {"auth": token}}}
        if context := _current_context(own):  # where the user's engine is
            config["currentContext"] = context
            Path(folder, "contexts").symlink_to((own / "contexts").absolute())
        path = Path(folder, "config.json")
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        yield {**os.environ, "DOCKER_CONFIG": folder, "REGISTRY_AUTH_FILE": str(path)}  # the latter is Podman's


def _current_context(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    found = config.get("currentContext") if isinstance(config, dict) else None
    return found if isinstance(found, str) else None


def _inspected(image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_docker("image", "inspect", image, about=image))[0]
    return found


def _docker(*argv: str, about: str) -> str:
    made = subprocess.run(["docker", *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if made.returncode:
        raise MissingError(f"{about}: docker {argv[0]}: {_last_line(made.stderr, made.returncode)}")
    return made.stdout


def _last_line(said: str, code: int) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {code}, and not a word"
