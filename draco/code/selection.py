"""Which files of the working directory travel when a job names a file or a folder as its code."""

import os
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from draco.code.pack import is_safe

LEFT_OUT = ("__pycache__", "node_modules", "*.egg-info")  # folders, wherever they are
OURS = ("runs", "data")  # folders of the working directory itself
# What holds keys and passwords as a rule. It never travels, under whatever name it is asked for.
SECRETS = (
    ".env*", "*.pem", "*.key", "*.p12", "*.pfx", "*.ppk", "*.jks", "*.keystore", "*.kdbx", "*.gpg", "id_rsa*",
    "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", ".pypirc", ".npmrc", ".git-credentials", "credentials",
    "credentials.json", "credentials.ini", "credentials.toml", "credentials.y*ml", "service*account*.json",
    "*.tfvars", "*.tfstate*",
)  # fmt: skip
_GIT_LIMIT_S = 20.0


def looks_secret(path: Path) -> bool:
    """Say whether a file looks like one that holds keys, by its name or its first bytes."""
    names = {path.name.lower(), path.resolve().name.lower()}
    if any(fnmatchcase(name, pattern) for name in names for pattern in SECRETS):
        return True
    with open(path, "rb") as file:
        begins = file.read(64)
    return begins.startswith(b"-----BEGIN ") and b"PRIVATE KEY" in begins


def within(named: str) -> str | None:
    """Return a path that a job names as `a/b`, or None where it leads elsewhere than below the working directory.

    What a link there leads to is copied like any other file.
    """
    path = PurePosixPath(os.path.normpath(named))
    return None if path.is_absolute() or ".." in path.parts else str(path)


def selected(root: Path, named: str) -> Iterator[str]:
    """Yield the files below a folder that travel, as paths from the root; links to folders are not followed.

    Left out are hidden files, virtual environments, compiled code, the root's runs and data, and what git ignores where
    the root is a git work tree.
    """
    known = _not_ignored(root, named)
    for where, folders, names in os.walk(root / named):
        here = Path(where)
        inside = here.relative_to(root)
        ours = OURS if inside == Path() else ()
        folders[:] = sorted(
            name for name in folders
            if not any(fnmatchcase(name, pattern) for pattern in (".*", *LEFT_OUT, *ours))
            and not (here / name / "pyvenv.cfg").exists()
        )  # fmt: skip
        for name in sorted(names):
            path = (inside / name).as_posix()
            hidden = name.startswith(".") or name.endswith((".pyc", ".pyo"))
            if not hidden and (known is None or path in known) and (here / name).is_file() and is_safe(path):
                yield path


def _not_ignored(root: Path, named: str) -> set[str] | None:
    """Return the files below a folder that git has or would take; None where it does not say."""
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", named]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook's
    try:
        made = subprocess.run(command, capture_output=True, check=True, timeout=_GIT_LIMIT_S, env=environment)
    except (OSError, subprocess.SubprocessError):  # no git, no work tree, or another user's
        return None
    return {os.fsdecode(path) for path in made.stdout.split(b"\0") if path}
