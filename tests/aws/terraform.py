"""Terraform on this machine: whether it is there, where it finds its provider offline, and one that stays."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from draco.cluster.aws import terraform

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


@contextmanager
def provider(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Run the real provider once for many commands, each of which would start it twice or more, for seconds.

    Args:
        folder: where it may keep files.
        environment: of the provider, which talks to AWS by it; as `environment` above returns it, and more.

    Yields:
        What TF_REATTACH_PROVIDERS must be, so that Terraform finds it.
    """
    clean = {name: value for name, value in environment.items() if name != "AWS_CA_BUNDLE"}  # it cannot use it then
    clean["TF_LOG"] = "ERROR"  # else it writes down every request
    roots = folder / "provider"
    shutil.copytree(terraform.ROOTS / "base", roots)
    subprocess.run(["terraform", "init", "-backend=false"], cwd=roots, env=clean, capture_output=True, check=True)
    (program,) = roots.glob(".terraform/providers/*/hashicorp/aws/*/*/terraform-provider-aws*")
    with (
        open(folder / "provider.log", "wb") as log,
        subprocess.Popen([program, "-debug"], env=clean, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout
            found = (re.search(r"TF_REATTACH_PROVIDERS='(.+)'", line) for line in process.stdout)
            yield next(match[1] for match in found if match)
        finally:
            process.kill()
