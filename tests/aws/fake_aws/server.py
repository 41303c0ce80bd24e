"""The fake AWS as a process:  python tests/fake_aws/server.py --folder F [--no-nodes] [--port P]   (--help has more)

Prints one line of JSON when it is ready, `{"endpoint": ..., "port": ..., ...}`, and serves until SIGTERM (or SIGINT, or
with --until-eof the end of its input); then it removes all that it made on this machine.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # the folder of the package; never this one, with its own module names

_CHECKS = ("MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION", "MOTO_ENABLE_AMI_VALIDATION", "MOTO_ENABLE_KEYPAIR_VALIDATION",
           "MOTO_IAM_LOAD_MANAGED_POLICIES")  # fmt: skip


def main() -> None:
    """Serve until told to stop."""
    given = _arguments()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if given.until_eof:
        threading.Thread(target=_await_eof, args=(stop,), daemon=True).start()
    if given.clean:
        _clean(given.folder)
        return
    with contextlib.ExitStack() as stack:
        ready = _start(stack, given)
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        stop.wait()
    os._exit(0)  # answers that are still delayed by a fault are nobody's any more


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A fake AWS for tests.")
    parser.add_argument("--folder", type=Path, required=True, help="where it keeps logs, file systems and images")
    parser.add_argument("--port", type=int, default=0, help="of its endpoint on 127.0.0.1; by default any free one")
    parser.add_argument("--no-nodes", dest="nodes", action="store_false", help="only the API: instances are no nodes")
    parser.add_argument("--images", type=Path, help="a folder that keeps the layers of pushed images for later fakes")
    parser.add_argument("--minute-s", type=float, default=60.0, help="how long a minute of instances' timers is")
    parser.add_argument("--clean", action="store_true", help="only remove what one that was killed has left")
    parser.add_argument("--until-eof", action="store_true", help="stop also when the standard input ends")
    return parser.parse_args()


def _start(stack: contextlib.ExitStack, given: argparse.Namespace) -> dict[str, Any]:
    from fake_aws.world import World

    given.folder.mkdir(parents=True, exist_ok=True)
    world = World(given.folder)
    world.images, world.minute_s = given.images, given.minute_s
    os.environ.update(dict.fromkeys(_CHECKS, "true"), MOTO_ACCOUNT_ID=world.account)  # before moto is imported
    from fake_aws import control, gaps, listener
    from fake_aws.application import Application

    control.install(world)
    gaps.fill(world)
    application = Application(world, lambda: world.operator)
    port = stack.enter_context(listener.listening(application, "127.0.0.1", given.port))
    if given.nodes:
        from fake_aws.nodes import machines

        stack.enter_context(machines.running(world, application, port))
    return {"endpoint": f"http://127.0.0.1:{port}", "port": port, "account": world.account, "pid": os.getpid(),
            "operator": world.operator or "127.0.0.1"}  # fmt: skip


def _clean(folder: Path) -> None:
    from fake_aws.nodes import machines
    from fake_aws.world import World

    machines.clean(World(folder))


def _await_eof(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()


if __name__ == "__main__":
    main()
