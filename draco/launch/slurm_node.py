"""What a node of a Slurm allocation says of itself before a launch, as one line of JSON.

python -m draco.launch.slurm_node FOLDER NAME     whether it sees the folder and knows the address of that node
"""

import json
import os
import socket
import sys
from pathlib import Path

from draco.launch import meeting
from draco.launch.facts import facts


def answer(folder: Path, name: str) -> dict[str, object]:
    """Return the node's name, whether it sees the folder and knows the other node, a free port, and its facts."""
    return {
        "node": os.environ.get("SLURMD_NODENAME", socket.gethostname()), "sees": folder.is_dir(), "knows": _knows(name),
        "port": meeting.free_port(), "facts": facts(),
    }  # fmt: skip


def _knows(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answer(Path(sys.argv[1]), sys.argv[2])) + "\n")
