"""ECR: Debian's docker-registry under the name of the account's registry, with TLS and the token as its password."""

import base64
import contextlib
import ctypes
import fcntl
import json
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fake_aws.nodes import tools
from fake_aws.world import World

_PROGRAM = "/usr/bin/docker-registry"
_PORT = 443
_START_LIMIT_S = 20
_MANIFESTS = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"


class Registry:
    """The account's registry.

    Args:
        world: the account's.
        address: where it listens, port 443.
    """

    def __init__(self, world: World, address: str) -> None:
        self._world, self._address = world, address
        self._folder = world.images or world.folder / "registry"
        self._token = f"{world.account}-auth-token"  # moto's GetAuthorizationToken says so

    @classmethod
    @contextlib.contextmanager
    def running(cls, world: World, address: str) -> Iterator["Registry"]:
        """Run it, where docker-registry is installed, and let this machine's engine know it."""
        registry = cls(world, address)
        with contextlib.ExitStack() as stack:
            stack.callback(forget, world)
            if Path(_PROGRAM).exists():
                registry._certify()
                _introduce(world, address)
                stack.enter_context(registry._serving())
            yield registry

    def look(self, given: dict[str, Any]) -> None:
        """Tell moto's repository what was pushed to it."""
        from moto.ecr.models import Image

        name = given["repository"]
        repository = self._world.ecr.repositories[name]
        listed = self._ask(f"/v2/{name}/tags/list")
        tags = (json.loads(listed[0]).get("tags") or []) if listed else []
        for tag in tags:
            found = self._ask(f"/v2/{name}/manifests/{tag}")
            if found is None:
                continue
            manifest, headers = found
            digest = headers["Docker-Content-Digest"]
            image = next((one for one in repository.images if one.get_image_digest() == digest), None)
            if image is None:
                kind = headers["Content-Type"]
                image = pushed(Image)(self._world.account, tag, manifest.decode(), name, kind, digest)
                repository.images.append(image)
            if tag not in image.image_tags:
                image.image_tags.append(tag)

    def delete(self, given: dict[str, Any]) -> None:
        """Delete one image of a repository, or all of them."""
        name = given["repository"]
        if "digest" in given:
            self._ask(f"/v2/{name}/manifests/{given['digest']}", "DELETE")
        else:
            repository = self._folder / "docker/registry/v2/repositories" / name
            shutil.rmtree(repository / "_manifests", ignore_errors=True)

    def _ask(self, path: str, method: str = "GET") -> tuple[bytes, Any] | None:
        """Ask the registry, by its own name."""
        if not Path(_PROGRAM).exists():
            return None
        login = base64.b64encode(f"AWS:{self._token}".encode()).decode()
        context = ssl.create_default_context(cafile=str(self._world.folder / "ca.crt"))
        headers = {"Authorization": f"Basic {login}", "Accept": _MANIFESTS}
        request = urllib.request.Request(f"https://{self._world.registry_host}{path}", headers=headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}),
                                             urllib.request.HTTPSHandler(context=context))  # fmt: skip
        try:
            with opener.open(request, timeout=10) as answer:
                return answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            error.close()
            return None

    def _certify(self) -> None:
        """Make a certificate authority, and a certificate for the registry's name."""
        folder, name = self._world.folder, self._world.registry_host
        days = ["-days", "30", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        tools.run("openssl", "req", "-x509", *days, "-subj", "/CN=fake AWS", "-keyout", str(folder / "ca.key"),
                  "-out", str(folder / "ca.crt"))  # fmt: skip
        tools.run("openssl", "req", "-x509", *days, "-subj", "/CN=registry", "-addext", f"subjectAltName=DNS:{name}",
                  "-addext", "basicConstraints=critical,CA:FALSE", "-CA", str(folder / "ca.crt"),
                  "-CAkey", str(folder / "ca.key"), "-keyout", str(folder / "registry.key"),
                  "-out", str(folder / "registry.crt"))  # fmt: skip

    @contextlib.contextmanager
    def _serving(self) -> Iterator[None]:
        self._clear()
        self._folder.mkdir(parents=True, exist_ok=True)
        files = self._world.folder
        (files / "htpasswd").write_text(f"AWS:{_bcrypt(self._token)}\n")
        (files / "registry.yml").write_text(json.dumps({  # JSON is YAML
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self._folder)}, "delete": {"enabled": True}},
            "http": {"addr": f"{self._address}:{_PORT}",
                     "tls": {"certificate": str(files / "registry.crt"), "key": str(files / "registry.key")}},
            "auth": {"htpasswd": {"realm": "ECR", "path": str(files / "htpasswd")}},
        }))  # fmt: skip
        with open(files / "registry.log", "ab") as log:
            argv = ["setpriv", "--pdeathsig", "TERM", _PROGRAM, "serve", str(files / "registry.yml")]
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            _await_port(self._address, process)
            yield
        finally:
            process.terminate()
            process.wait()
            self._clear()

    def _clear(self) -> None:
        """Forget all images; where layers are kept, these are not images yet, but need not be sent again."""
        if self._world.images is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        for manifests in self._folder.rglob("_manifests"):
            shutil.rmtree(manifests)


def pushed(kind: type) -> type:
    """Return moto's class of images with the size that they have."""

    class Pushed(kind):  # type: ignore[misc,valid-type]
        __module__ = kind.__module__

        def get_image_size_in_bytes(self) -> int:
            return sum(layer["size"] for layer in json.loads(self.image_manifest).get("layers", []))

    return Pushed


def _bcrypt(password: str) -> str:
    """Return a password as htpasswd keeps it."""
    library = ctypes.CDLL("libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    made: bytes = library.crypt(password.encode(), b"$2y$05$abcdefghijklmnopqrstuu")
    return made.decode()


def _await_port(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((address, _PORT), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{_PROGRAM} does not answer at {address}:{_PORT}; see registry.log")


def _line(world: World, address: str = "") -> str:
    return f"{address} {world.registry_host} # {world.prefix}"


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other fakes, which come and go at the same time, from this machine's files meanwhile."""
    with open("/etc/hosts", "a", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _introduce(world: World, address: str) -> None:
    """Let this machine resolve the registry's name, and its Docker Engine trust it."""
    folder = Path("/etc/docker/certs.d", world.registry_host)
    with _alone():
        with open("/etc/hosts", "a", encoding="utf-8") as file:
            file.write(f"{_line(world, address)}\n")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(world.folder / "ca.crt", folder / "ca.crt")


def forget(world: World) -> None:
    """Undo _introduce."""
    hosts = Path("/etc/hosts")
    with _alone():
        lines = hosts.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.rstrip("\n").endswith(_line(world))]
        if kept != lines:
            hosts.write_text("".join(kept))  # in place: it may be a mount
        shutil.rmtree(Path("/etc/docker/certs.d", world.registry_host), ignore_errors=True)
        with contextlib.suppress(OSError):  # others' are there
            Path("/etc/docker/certs.d").rmdir()
