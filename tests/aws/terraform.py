"""Terraform on this machine: whether it is there, and an environment in which it finds its provider offline."""

import os
import shutil
from pathlib import Path

_MIRRORS = Path("/opt")  # Terraform itself looks in the other usual places


def why_not() -> str | None:
    """Say why tests that need Terraform cannot run here."""
    return None if shutil.which("terraform") else "terraform is not on PATH"


def environment(folder: Path) -> dict[str, str]:
    """Return this process's environment for Terraform; writes into `folder` a configuration that names a mirror if any.

    A configuration that the caller named stays. Without a mirror Terraform asks the registry.
    """
    found = {**os.environ, "TF_IN_AUTOMATION": "1", "TF_INPUT": "0", "CHECKPOINT_DISABLE": "1"}
    found["GOGC"] = "400"  # the provider starts, at every command, in a quarter less time
    if Path(found.pop("TF_CLI_CONFIG_FILE", "/nowhere")).is_file():
        return {**found, "TF_CLI_CONFIG_FILE": os.environ["TF_CLI_CONFIG_FILE"]}
    for provider in sorted(_MIRRORS.glob("*/*/hashicorp/aws/5.100.*")):
        configuration = folder / "terraform.rc"
        mirror = provider.parents[3]
        configuration.write_text(f'provider_installation {{\n  filesystem_mirror {{\n    path = "{mirror}"\n  }}\n}}\n')
        return {**found, "TF_CLI_CONFIG_FILE": str(configuration)}
    return found
