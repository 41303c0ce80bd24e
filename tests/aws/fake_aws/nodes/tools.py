"""The tools of this machine that the fake runs, and which of them are missing."""

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NEEDED = {
    "ip": "iproute2", "iptables": "iptables", "iptables-restore": "iptables", "nsenter": "util-linux",
    "unshare": "util-linux", "pivot_root": "util-linux", "setpriv": "util-linux", "sshd": "openssh-server",
    "ssh-keygen": "openssh-client", "sudo": "sudo", "curl": "curl", "openssl": "openssl", "pgrep": "procps",
}  # fmt: skip
_CLONE_NEWNET = 0x40000000
_PROBE = """
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
"""


def why_not(*more: str) -> str:
    """Say why instances cannot be nodes on this machine, or nothing.

    Args:
        more: tools that are needed besides, such as dockerd.
    """
    if sys.platform != "linux":
        return "instances are nodes on Linux only"
    if os.geteuid() != 0:
        return "making nodes needs root"
    missing = sorted({NEEDED.get(tool, tool) for tool in (*NEEDED, *more) if not shutil.which(tool, path=PATH)})
    if subprocess.run(["/usr/bin/python3", "-c", "import apt"], capture_output=True, check=False).returncode:
        missing.append("python3-apt")  # for Ansible's tasks that see to packages
    if missing:
        return f"making nodes needs {', '.join(missing)}"
    probe = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-ec", _PROBE],
                           capture_output=True, text=True, check=False)  # fmt: skip
    return f"no namespaces with a root of their own: {probe.stderr.strip()}" if probe.returncode else ""


def run(*argv: str, required: bool = True, stdin: str | None = None) -> str:
    """Run a tool and return its output; one that fails and is not required returns nothing."""
    made = subprocess.run(
        argv, input=stdin, capture_output=True, text=True, check=False, env={**os.environ, "PATH": PATH}
    )
    if made.returncode and required:
        raise RuntimeError(f"{' '.join(argv)}: exit code {made.returncode}: {made.stderr.strip()}")
    return made.stdout if made.returncode == 0 else ""


def ip(*lines: str, space: str | None = None, required: bool = True) -> None:
    """Run lines of the `ip` command, in a network namespace or on this machine."""
    where = ["-netns", space] if space else []
    run(
        "ip", *where, *([] if required else ["-force"]), "-batch", "-", stdin="\n".join(lines) + "\n", required=required
    )


def within(space: str, *argv: str, stdin: str | None = None, required: bool = True) -> str:
    """Run a tool in a network namespace, with this machine's files."""
    return run("nsenter", f"--net=/run/netns/{space}", *argv, stdin=stdin, required=required)


def listen_within(space: str, address: str, port: int) -> socket.socket:
    """Return a socket of this process that listens in a network namespace."""
    made: list[socket.socket | OSError] = []

    def listen() -> None:  # in a thread of its own: a thread's namespace is nobody else's
        try:
            handle = os.open(f"/run/netns/{space}", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {space}")
            finally:
                os.close(handle)
            made.append(socket.create_server((address, port), backlog=64))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def remove_tree(folder: Path) -> None:
    """Remove a folder and what is in it; whatever is mounted there stays."""
    run("rm", "-rf", "--one-file-system", str(folder), required=False)
