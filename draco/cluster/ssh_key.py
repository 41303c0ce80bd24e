"""The operator's ssh key of a cluster, made once: the nodes let its owner in. Among nodes, the head's key is Ansible's.

The head's own key, with which it reaches the workers, is made by ansible/roles/trust.
"""

import subprocess
from pathlib import Path

from draco.errors import MissingError


def operator_key(cluster: str, folder: Path) -> Path:
    """Return the private key in a cluster's folder, made first if need be; the public half lies beside it as .pub.

    Raises:
        MissingError: ssh-keygen is missing, or says why it cannot make one.
    """
    path = folder / "operator_key"
    if path.exists():
        return path
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"operator of {cluster}", "-f", str(path)]
    try:
        made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise MissingError("ssh-keygen: is missing (Debian and Ubuntu: apt-get install openssh-client)") from None
    if made.returncode:
        raise MissingError(f"ssh-keygen: {made.stderr.strip()}")
    return path
