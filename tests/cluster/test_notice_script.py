"""The real draco-notice against a metadata service that says what a test has it say."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from draco.launch.notices import Notice, parse

SCRIPT = Path(__file__).parents[2] / "infra/cluster/files/notice.sh"
ACTION, REBALANCE = "spot/instance-action", "events/recommendations/rebalance"
GOES = Notice("interruption", "2026-01-02T03:04:05Z")
SAYS_GOES = '{"action": "terminate", "time": "2026-01-02T03:04:05Z"}'
SAYS_REBALANCE = '{"noticeTime": "2026-01-02T03:00:00Z"}'


class Metadata:
    """What an instance's metadata service says, by path, and the tokens that it takes."""

    def __init__(self) -> None:
        self.says: dict[str, str] = {}
        self.tokens: set[str] = set()
        self.given = self.looks = 0
        self.status: int | None = None  # of every answer, tokens too
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        metadata = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                assert self.path == "/latest/api/token"
                assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "21600"
                metadata.given += 1
                metadata.tokens.add(f"TOKEN{metadata.given}")
                self._send(200, f"TOKEN{metadata.given}")

            def do_GET(self) -> None:
                path = self.path.removeprefix("/latest/meta-data/")
                metadata.looks += path == ACTION
                if self.headers.get("X-aws-ec2-metadata-token") not in metadata.tokens:
                    self._send(401, "")
                elif path in metadata.says:
                    self._send(200, metadata.says[path])
                else:
                    self._send(404, f"<html>{path}: Not Found</html>")

            def _send(self, status: int, text: str) -> None:
                self.send_response(metadata.status or status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    made = Metadata()
    yield made
    made.end()


class Node:
    """A machine on which the script runs."""

    def __init__(self, folder: Path, url: str) -> None:
        self.path = folder / "run" / "notice.json"
        environment = {
            "PATH": os.environ["PATH"], "METADATA": url, "NOTICE": str(self.path), "EVERY_S": "0.05",
            "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        self._output = (folder / "output").open("w+")
        self.process = subprocess.Popen(
            [str(SCRIPT)], env=environment, stdout=self._output, stderr=self._output, stdin=subprocess.DEVNULL
        )

    @property
    def notice(self) -> Notice | None:
        return parse(self.path.read_bytes()) if self.path.exists() else None

    def said(self) -> str:
        return Path(self._output.name).read_text()

    def end(self) -> None:
        assert self.process.poll() is None  # it runs for ever
        self.process.kill()
        self.process.wait()
        self._output.close()


@pytest.fixture
def node(metadata: Metadata, tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path, metadata.url)
    yield made
    made.end()


def until(true: Callable[[], bool], limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "this takes too long"
        time.sleep(0.02)


def more_looks(metadata: Metadata, count: int = 3) -> None:
    """Wait until the script has looked so often again."""
    before = metadata.looks
    until(lambda: metadata.looks >= before + count)


def test_where_nothing_is_said_there_is_no_file(node: Node, metadata: Metadata) -> None:
    more_looks(metadata, 4)
    assert list(node.path.parent.iterdir()) == []
    assert node.said() == ""
    assert metadata.given == 1  # one token for all


def test_an_interruption_is_written_down_where_the_head_can_read_it(node: Node, metadata: Metadata) -> None:
    metadata.says[ACTION] = SAYS_GOES
    until(lambda: node.notice == GOES)
    assert node.path.read_text() == GOES.text() + "\n"
    assert node.path.stat().st_mode & 0o777 == 0o644
    more_looks(metadata)
    assert node.said() == f"draco-notice: {GOES.text()}\n"  # once


def test_an_interruption_outranks_a_rebalance_recommendation(node: Node, metadata: Metadata) -> None:
    metadata.says[REBALANCE] = SAYS_REBALANCE
    until(lambda: node.notice == Notice("rebalance", "2026-01-02T03:00:00Z"))
    metadata.says[ACTION] = SAYS_GOES
    until(lambda: node.notice == GOES)
    del metadata.says[ACTION]
    more_looks(metadata)
    assert node.notice == GOES


def test_a_notice_is_never_taken_back(node: Node, metadata: Metadata) -> None:
    metadata.says[REBALANCE] = SAYS_REBALANCE
    until(lambda: node.notice is not None)
    metadata.says.clear()
    more_looks(metadata)
    assert node.notice == Notice("rebalance", "2026-01-02T03:00:00Z")


def test_another_time_is_written_down_too(node: Node, metadata: Metadata) -> None:
    metadata.says[ACTION] = SAYS_GOES
    until(lambda: node.notice == GOES)
    metadata.says[ACTION] = SAYS_GOES.replace("05Z", "09Z")
    until(lambda: node.notice == GOES._replace(at="2026-01-02T03:04:09Z"))


def test_a_token_that_is_refused_is_replaced(node: Node, metadata: Metadata) -> None:
    more_looks(metadata)
    metadata.tokens.clear()  # as when it has expired
    metadata.says[ACTION] = SAYS_GOES
    until(lambda: node.notice == GOES)
    assert metadata.given == 2


@pytest.mark.parametrize(
    "answer",
    ["", "<html>", '{"action": "none"}', '{"time": "soon"}', '{"time": "2026-01-02T03:04:05Z\\n"}', "x" * 100_000],
)
def test_an_answer_without_a_time_is_no_notice(node: Node, metadata: Metadata, answer: str) -> None:
    metadata.says = {ACTION: answer, REBALANCE: answer}
    more_looks(metadata)
    assert node.notice is None
    metadata.says[ACTION] = SAYS_GOES
    until(lambda: node.notice == GOES)


@pytest.mark.parametrize("status", [500, 503, 403])
def test_a_metadata_service_that_fails_is_asked_again(node: Node, metadata: Metadata, status: int) -> None:
    more_looks(metadata, 1)
    metadata.status = status
    metadata.says[ACTION] = SAYS_GOES
    time.sleep(0.5)
    assert node.notice is None
    metadata.status = None
    until(lambda: node.notice == GOES)


def test_a_silent_metadata_service_does_not_end_it(tmp_path: Path) -> None:
    made = Node(tmp_path, "http://127.0.0.1:1")
    time.sleep(0.5)
    assert made.notice is None
    assert made.said() == ""
    made.end()
