"""The operator's commands on a cluster: the same command on the head, and a run's progress here.

A run belongs to its supervisor on the head. The operator only watches. A closed terminal or a broken connection ends
nothing; Ctrl-C asks the run to stop.
"""

import json
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

from rich.console import Console

from draco.cluster import state
from draco.cluster.backend import BACKENDS, HEAD, Cluster
from draco.cluster.repair import Repair
from draco.code.pack import Pack, dumped
from draco.errors import NotConfiguredError
from draco.launch.interrupts import Interrupts
from draco.launch.progress import Progress
from draco.plain import value
from draco.runs import door
from draco.runs.directory import Status

_CONNECTIONS = 3  # attempts in a row to reach a head that seems well
SILENT_S = 15.0  # after which a head that says nothing, not even that it is alive, is looked at


def on_node(cluster: Cluster, node: str, argv: Sequence[str], *, terminal: bool = False) -> list[str]:
    """Return the local command that runs `argv` on a node."""
    folder = state.folder(cluster.name)
    return BACKENDS[cluster.backend].command(cluster, folder, node, argv, terminal=terminal)


def draco(cluster: Cluster, *arguments: str) -> list[str]:
    """Return the local command that runs one of Draco's own commands on the head."""
    return on_node(cluster, HEAD, [cluster.python, "-m", "draco", *arguments])


def same(cluster: Cluster, arguments: Sequence[str], text: str = "") -> int:
    """Run a command on the head as if it were run here and return its exit code; `text` is its standard input."""
    return subprocess.run(draco(cluster, *arguments), input=text.encode(), check=False).returncode


def send_code(cluster: Cluster, pack: Pack) -> list[str]:
    """Put a job's own code on the head, by its digest; return the options by which a start there takes it.

    Raises:
        NotConfiguredError: the head did not take it; says why.
    """
    argv = [cluster.python, "-m", "draco.code.store", "put", pack.digest]
    command = on_node(cluster, HEAD, argv)
    made = subprocess.run(command, input=dumped(pack), capture_output=True, text=True, check=False)
    if made.returncode:
        why = (made.stderr.strip().splitlines() or [f"exit code {made.returncode}"])[-1]
        raise NotConfiguredError(f"{cluster.name}: its head did not take the job's own code: {why}")
    return ["--code", pack.digest]


def start(cluster: Cluster, job_yaml: str, options: Sequence[str]) -> tuple[int, str]:
    """Start a run on the head, watched over by its supervisor; return the exit code and the run's directory there."""
    made = subprocess.run(
        draco(cluster, "train", "-", "--checked", "--detach", *options),
        input=job_yaml,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = made.stdout.split("\n")
    if made.returncode or "--dry-run" in options:
        print(made.stdout, end="")
        return made.returncode, ""
    return 0, lines[-2]


def attend(
    cluster: Cluster, run: str, console: Console, again: str, *, replace: bool = False, on_demand: bool = False
) -> Status:
    """Show a run's progress until it ends and return its verdict; Ctrl-C asks it to stop, a second one kills it.

    With `replace` lost nodes are brought up again meanwhile, and the run takes them back by itself. With `on_demand`
    they may be bought on demand.

    Raises:
        NotConfiguredError: the head is gone and with it the runs; says how to go on.
    """
    progress, tries = Progress(None, console, f"starting on {cluster.name}"), 0
    with progress, _asking(cluster, run, progress), Repair(cluster.name, progress.say, on_demand=on_demand) as repair:
        note = repair.note if replace else None
        while True:
            began = time.monotonic()
            process = subprocess.Popen(
                draco(cluster, "follow", run), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
            )
            assert process.stdout
            try:
                verdict = _watched(cluster, process.stdout, progress, note)
            finally:
                process.kill()
                process.communicate()
            if verdict:
                return verdict
            tries = tries + 1 if time.monotonic() - began < SILENT_S else 1
            if _head(cluster) != "running" or tries == _CONNECTIONS:
                break
    return _without_head(cluster, run, again)


def _asking(cluster: Cluster, run: str, progress: Progress) -> Interrupts:
    """Turn Ctrl-C into a request to the run: the first to stop, the second to end at once."""

    def ask(count: int, name: str) -> None:
        options = ["--kill"] if count > 1 else []
        subprocess.Popen(
            draco(cluster, "stop", run, "--no-wait", *options),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        if count == 1:
            progress.say(f"{name}: stopping after this step; once more kills the run")

    return Interrupts(ask)


def _watched(
    cluster: Cluster, stream: IO[bytes], progress: Progress, note: Callable[[dict[str, Any]], None] | None = None
) -> Status | None:
    """Show events from the head until the verdict, or return None when the head is gone; hand each to `note`."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        heard, rest = time.monotonic(), b""
        while True:
            if not selector.select(timeout=1.0):
                if time.monotonic() - heard > SILENT_S and _head(cluster) != "running":
                    return None
                continue
            heard = time.monotonic()
            chunk = os.read(stream.fileno(), 1 << 16)
            *lines, rest = (rest + chunk).split(b"\n")
            for each in filter(None, map(door.heard, lines)):
                if each["event"] == "state":
                    return Status(**{key: value for key, value in each.items() if key != "event"})
                progress.show(each)
                if note:
                    note(each)
            if not chunk:
                return None


def _head(cluster: Cluster) -> str:
    folder = state.folder(cluster.name)
    return BACKENDS[cluster.backend].states(cluster, folder)[HEAD]


def _without_head(cluster: Cluster, run: str, again: str) -> Status:
    """Record that the head is gone, where its storage can be reached without it, and say how to go on."""
    folder = state.folder(cluster.name)
    found = _head(cluster)
    why = f"the head is {found if found != 'running' else 'there but does not answer'}"
    command = BACKENDS[cluster.backend].storage_command(
        cluster, folder, [cluster.python, "-m", "draco", "head", "lost", run, f"{why}, and the server with it"]
    )
    if found in ("stopped", "missing") and command:
        made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if not made.returncode:
            return Status(**door.state(made.stdout))
    goes_on = "" if found in ("stopped", "missing") else "; the run may still be going on: make cluster-status"
    raise NotConfiguredError(
        f"{cluster.name}: {why}{goes_on}. make cluster-up NAME={cluster.name} brings the head back, then: {again}"
    )


def snapshot(cluster: Cluster) -> dict[str, Any] | None:
    """Return the head's description of its newest run, or None if it does not answer."""
    try:
        made = subprocess.run(
            draco(cluster, "head", "runs"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        found = json.loads(made.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return None
    return value(found) if isinstance(found, dict) else None


def enter(cluster: Cluster, node: str) -> list[str]:
    """Return the command that opens a shell on a node."""
    return on_node(cluster, node, ["sh", "-c", "exec $(command -v bash || echo sh)"], terminal=True)
