"""The start of the fake AWS by tests, and what they say to it."""

import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SERVER = Path(__file__).with_name("server.py")
_START_LIMIT_S = 90
_STOP_LIMIT_S = 180  # a gigabyte of images for each node takes its time to remove


class Fake:
    """A fake AWS that runs.

    Attributes:
        folder: where it keeps its files; server.log is there.
        endpoint: the URL of its API on this machine.
        environment: what a process needs to take it for AWS.
    """

    def __init__(self, folder: Path, ready: Mapping[str, Any]) -> None:
        self.folder = folder
        self.endpoint: str = ready["endpoint"]
        self.account: str = ready["account"]
        self._clients: dict[tuple[str, str], Any] = {}
        self.environment: dict[str, str] = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_PAGER": "",
            "DRACO_CHECKIP_URL": f"{self.endpoint}/checkip",
        }

    def client(self, service: str, region: str = "us-east-1") -> Any:
        """Return a boto3 client of a service; the same one every time, since making one takes long."""
        import boto3

        if (service, region) not in self._clients:
            session = boto3.Session(aws_access_key_id="testing", aws_secret_access_key="testing", region_name=region)
            self._clients[service, region] = session.client(service, endpoint_url=self.endpoint)
        return self._clients[service, region]

    def ask(self, part: str, given: Mapping[str, Any] | None = None) -> Any:
        """Ask the control endpoint (control.py) and return its answer."""
        data = json.dumps(given or {}).encode()
        request = urllib.request.Request(f"{self.endpoint}/_fake/{part}", data=data)
        try:
            with urllib.request.urlopen(request, timeout=_STOP_LIMIT_S) as answer:
                return json.load(answer)["result"]
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(f"{part}: {json.load(error)['error']}") from None

    def set_faults(self, by_action: Mapping[str, Any]) -> None:
        """Replace all faults; see faults.py. `{}` ends them."""
        self.ask("faults", by_action)

    def set_prices(self, prices: Mapping[str, Any]) -> None:
        """Replace all prices that were set; see prices.py. `{}` goes back to the made-up ones."""
        self.ask("prices", prices)

    def set_quotas(self, quotas: Mapping[str, float]) -> None:
        """Set quotas, {code: vCPUs}."""
        self.ask("quotas", quotas)

    def interrupt(self, instance: str, after_s: float) -> None:
        """Take a spot instance back: its notice and its request's status now, its end so many seconds later."""
        self.ask("interrupt", {"instance": instance, "after_s": after_s})

    def notice(self, instance: str, path: str, content: Any) -> None:
        """Set what an instance reads below /latest/meta-data, `spot/instance-action` say; None takes it away."""
        self.ask("notice", {"instance": instance, "path": path, "content": content})

    def cut(self, instance: str, down: bool = True) -> None:
        """Take an instance's network away, or give it back."""
        self.ask("cut", {"instance": instance, "down": down})

    def node(self, instance: str) -> dict[str, Any]:
        """Return an instance's first process (`pid`, on this machine), `folder`, network namespace and address."""
        found: dict[str, Any] = self.ask("node", {"instance": instance})
        return found

    def calls(self, action: str | None = None) -> list[dict[str, Any]]:
        """Return what was asked of the API, oldest first."""
        found: list[dict[str, Any]] = self.ask("calls", {"action": action} if action else {})
        return found

    def reset(self) -> None:
        """Forget every resource, as a new account; with nodes, these end."""
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/moto-api/reset", data=b""), timeout=60).close()
        self.ask("reconcile")


@contextmanager
def running(folder: Path, nodes: bool = True, *, images: Path | None = None, minute_s: float = 60.0) -> Iterator[Fake]:
    """Run a fake AWS in a process of its own.

    Args:
        folder: where it keeps its files, on a disk that overlays can be on.
        nodes: whether instances are nodes; without, it is the API alone and runs anywhere.
        images: a folder where its registry keeps layers for later fakes, so that a push takes seconds.
        minute_s: how long a minute of instances' timers is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, str(_SERVER), "--folder", str(folder), "--until-eof", "--minute-s", str(minute_s)]
    argv += [] if nodes else ["--no-nodes"]
    argv += ["--images", str(images)] if images else []
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MOTO_"))}
    with (
        open(folder / "server.log", "ab") as log,
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=clean) as process,
    ):
        try:
            yield Fake(folder, _ready(process, folder))
        finally:
            process.terminate()
            try:
                process.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _ready(process: subprocess.Popen[bytes], folder: Path) -> dict[str, Any]:
    assert process.stdout
    timer = threading.Timer(_START_LIMIT_S, process.kill)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    if not line:
        written = (folder / "server.log").read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"the fake AWS did not start: {written[-1] if written else process.wait()}")
    ready: dict[str, Any] = json.loads(line)
    return ready
