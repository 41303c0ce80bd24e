#!/usr/bin/python
"""Ansible module: a directory on a node that holds given small files and SSH keys, seen to in one round trip.

With the builtin modules the same takes a directory, a key, a slurp, a copy per file and a removal per file, each of
them several round trips to every node. Written for Python 3.9 and newer, since nodes bring their own.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: directory_content
short_description: A directory that holds given small files and SSH keys
description:
  - Makes the directory, ed25519 key pairs where they are missing, and files with the given content; removes others.
  - Private keys are made on the node and never leave it. Only public keys are returned.
  - Whatever is not a plain file (a link, say) is replaced and never followed, as the directory's owner may not be root.
  - Supports check mode and diffs.
options:
  path: {type: path, required: true, description: The directory.}
  owner: {type: str, description: "Name or number of the user who owns everything; by default the one who connects."}
  keys: {type: list, elements: str, default: [], description: Names of ed25519 key pairs to have.}
  files: {type: dict, default: {}, description: "Names of files (mode 0644), each with its content."}
  absent: {type: list, elements: str, default: [], description: Names of files that must not be there.}
author: [Draco]
"""
EXAMPLES = """
- name: Keep a host key, and no client key
  directory_content:
    path: /etc/draco
    keys: [ssh_host_ed25519_key]
    absent: [id_ed25519, id_ed25519.pub]
"""
RETURN = """
public_keys: {type: dict, returned: always, description: Public key by name of the pair.}
changes: {type: list, elements: str, returned: always, description: Names of what was made, written or removed.}
"""


class Directory:
    """The directory, and what was changed in it so far."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.path: str = module.params["path"]
        self.changes: list[str] = []
        self.diff: list[dict[str, str]] = []
        owner = module.params["owner"]
        if owner is None:
            self.uid, self.gid = os.geteuid(), os.getegid()
        elif owner.isdigit():
            self.uid = self.gid = int(owner)
        else:
            try:
                self.uid, self.gid = pwd.getpwnam(owner)[2:4]
            except KeyError:
                module.fail_json(msg=f"there is no user {owner}")

    def make(self) -> None:
        """Make the directory itself, or correct its owner and mode."""
        if not os.path.isdir(self.path):
            self.changes.append(self.path)
            if not self.module.check_mode:
                os.makedirs(self.path)
        self.own(self.path, 0o755)

    def own(self, path: str, mode: int) -> None:
        """Give a file or directory that is there to the owner, with exactly this mode."""
        if not os.path.lexists(path):
            return
        now = os.lstat(path)
        if (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)) == (self.uid, self.gid, mode):
            return
        self.changes.append(path)
        if self.module.check_mode:
            return
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if (now.st_uid, now.st_gid) != (self.uid, self.gid):
                os.fchown(handle, self.uid, self.gid)
            os.fchmod(handle, mode)
        finally:
            os.close(handle)

    def read(self, name: str) -> str | None:
        """Content of a plain file; None where there is none."""
        path = os.path.join(self.path, name)
        if not os.path.lexists(path) or not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8", errors="replace") as file:
            return file.read()

    def write(self, name: str, content: str, mode: int = 0o644, secret: bool = False) -> None:
        """Put a file of this content in place at once, whatever has been there."""
        before, path = self.read(name), os.path.join(self.path, name)
        if before == content:
            self.own(path, mode)
            return
        self.changes.append(path)
        if not secret:
            self.diff.append({"before_header": path, "after_header": path, "before": before or "", "after": content})
        if self.module.check_mode:
            return
        handle, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{name}.")
        with open(handle, "w", encoding="utf-8") as file:
            file.write(content)
            os.fchmod(handle, mode)
            os.fchown(handle, self.uid, self.gid)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        os.replace(temporary, path)

    def remove(self, name: str) -> None:
        """Remove a file, link or directory where there is one."""
        path = os.path.join(self.path, name)
        if not os.path.lexists(path):
            return
        self.changes.append(path)
        if self.module.check_mode:
            return
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)

    def key(self, name: str) -> str:
        """Have the key pair; returns its public half, derived from the private one."""
        private = self.read(name)
        if private is None and self.module.check_mode:
            self.changes.append(os.path.join(self.path, name))
            return "ssh-ed25519 (made when this is no check)"
        with tempfile.TemporaryDirectory() as folder:
            copy = os.path.join(folder, name)
            if private is None:
                make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", os.uname().nodename, "-f", copy]
                self.module.run_command(make, check_rc=True)
                with open(copy, encoding="utf-8") as file:
                    private = file.read()
            else:
                with open(os.open(copy, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
                    file.write(private)
            _, public, _ = self.module.run_command(["ssh-keygen", "-y", "-P", "", "-f", copy], check_rc=True)
        self.write(name, private, 0o600, secret=True)
        self.write(f"{name}.pub", f"{public.strip()}\n")
        return " ".join(public.split()[:2])


def keep(directory: Directory, wanted: dict[str, Any]) -> dict[str, str]:
    """Bring the directory into the wanted state; returns the public keys."""
    directory.make()
    for name in wanted["absent"]:
        directory.remove(name)
    public_keys = {name: directory.key(name) for name in wanted["keys"]}
    for name, content in wanted["files"].items():
        directory.write(name, content)
    return public_keys


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "owner": {"type": "str"},
            "keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "files": {"type": "dict", "default": {}},
            "absent": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    directory = Directory(module)
    try:
        public_keys = keep(directory, module.params)
    except OSError as error:
        module.fail_json(msg=f"{error.filename or directory.path}: {error.strerror}", changes=directory.changes)
    module.exit_json(
        changed=bool(directory.changes), changes=directory.changes, diff=directory.diff, public_keys=public_keys
    )


if __name__ == "__main__":
    main()
