"""HTTP servers in threads of this process."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server


class _Quiet(WSGIRequestHandler):
    """Does not write a line for every request; the fake records them."""

    def log(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def listening(application: Callable[..., Any], address: str, port: int, fd: int | None = None) -> Iterator[int]:
    """Serve an application at an address, or on a socket that listens there; yield the port."""
    server = make_server(address, port, application, threaded=True, request_handler=_Quiet, fd=fd)
    server.daemon_threads = True  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
