"""Ansible on a cluster's inventory: its progress by task, and its failures as sentences."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from draco.errors import MissingError, NotConfiguredError
from draco.launch.environment import launch_environment

PLAYS = Path(__file__).parents[2] / "ansible"
_LONGEST_TMPDIR = 30
_TASK = re.compile(r"^(?:TASK|RUNNING HANDLER) \[(.*?)\]")
_RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)")
_FATAL = re.compile(r"^(?:fatal|failed): \[([^\]]+)\].*?(?:=> (.*))?$")


def require() -> None:
    """Raise a MissingError unless Ansible is in this virtual environment, and its playbooks are where Draco is."""
    if not PLAYS.exists():
        raise MissingError("draco cluster: the playbooks are in the repository: run it in a checkout")
    if not _tool("ansible-playbook").exists():
        raise MissingError("ansible is not in this virtual environment; make setup EXTRAS=cluster")


def write_inventory(values: Mapping[str, Any], path: Path) -> None:
    """Write an inventory as YAML."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    out = io.StringIO()
    yaml.dump(dict(values), out)
    path.write_text(out.getvalue())


def play(name: str, inventory: Path, log: Path, say: Callable[[str], None], variables: Mapping[str, Any] = {}) -> int:
    """Run the play `name` and return how many things it changed.

    Raises:
        NotConfiguredError: a task failed or a node was out of reach; names node and reason.
    """
    sockets = _sockets()
    argv = [str(_tool("ansible-playbook")), "--inventory", str(inventory), str(PLAYS / name)]
    argv += ["--extra-vars", json.dumps(dict(variables))]
    environment = launch_environment(os.environ, {
        "ANSIBLE_CONFIG": str(PLAYS / "ansible.cfg"), "ANSIBLE_SSH_CONTROL_PATH_DIR": sockets,
        "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
    })  # fmt: skip
    lines: list[str] = []
    try:
        with (
            open(log, "w", encoding="utf-8") as file,
            subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            ) as process,
        ):
            assert process.stdout
            for line in process.stdout:
                file.write(line)
                lines.append(line.rstrip("\n"))
                if task := _TASK.match(line):
                    say(task[1])
    finally:
        _close(sockets)
    if process.returncode:
        raise NotConfiguredError(f"{_faults(lines)}\nall of it: {log}; make cluster-up again is safe")
    return sum(int(recap[2]) for line in lines if (recap := _RECAP.match(line)))


def _sockets() -> str:
    """Make a folder for connections; a new one each time: a new node must not get the old one's connection.

    A socket's path has 108 characters, of which ssh takes up to 60: a long TMPDIR is of no use.
    """
    folder = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="draco-", dir=folder if len(folder) <= _LONGEST_TMPDIR else "/tmp")


def _tool(name: str) -> Path:
    return Path(sys.executable).parent / name


def _close(sockets: str) -> None:
    """End the connections that Ansible keeps open, and remove their sockets."""
    for socket in Path(sockets).glob("*"):
        subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "x"], capture_output=True, check=False)
    shutil.rmtree(sockets, ignore_errors=True)


def _faults(lines: list[str]) -> str:
    """Return a sentence for each node that failed: the task and Ansible's message."""
    task, found = "", []
    for line in lines:
        if started := _TASK.match(line):
            task = started[1]
        elif fatal := _FATAL.match(line):
            found.append(f"{fatal[1]}: {task}: {_reason(fatal[2] or line)}")
        elif line == "...ignoring":
            found = found[:-1]
    return "\n".join(found) or "\n".join(lines[-5:])


def _reason(result: str) -> str:
    """Return why a task failed: its message, and the last line that a failed command printed."""
    try:
        told = json.loads(result)
        words = [str(told["msg"]), *told.get("stderr", "").strip().splitlines()[-1:]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return result[:300]
    return ": ".join(" ".join(word.split()) for word in words)
