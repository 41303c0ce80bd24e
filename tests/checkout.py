"""The run of make in a copy of the working tree, which the fixture `checkout` provides."""

import os
import subprocess
from pathlib import Path


def make(checkout: Path, *arguments: str, limit_s: float = 200) -> subprocess.CompletedProcess[str]:
    # The shared virtual environment is taken as it is: setting it up from the copy would tie it to the copy.
    ready = [f"--old-file=.venv/{name}" for name in ("ready", "ready-dev", "ready-cluster")]
    # As from a shell: a make below `make test` would print which folder it enters.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")
    }
    return subprocess.run(["make", *ready, *arguments], cwd=checkout, env=environment, capture_output=True, text=True,
                          timeout=limit_s)  # fmt: skip
