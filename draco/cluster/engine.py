"""The container engine of this machine: its command line, its images, and what it has to give to containers."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from draco.cluster import gpus
from draco.errors import MissingError, RefusedError

CDI = "nvidia.com/gpu"  # kind of device
_TORCH = "draco.torch"  # label of an image


def call(*argv: str, about: str = "") -> str:
    """Run one command of the engine and return its output; `about` begins the message if it fails."""
    try:
        made = subprocess.run(["docker", *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise MissingError(
            "CLUSTER=docker needs Docker, and there is no command docker: install it "
            "(Debian and Ubuntu: apt-get install docker.io; macOS and Windows: Docker Desktop)"
        ) from error
    if made.returncode:
        raise MissingError(explained(about or f"docker {' '.join(argv)}", made.stderr))
    return made.stdout


def explained(about: str, said: str) -> str:
    """Return what an engine's error message means and what to do."""
    if "permission denied" in said and "daemon" in said:
        return "this user may not use the Docker Engine: sudo usermod -aG docker $USER, then log in again"
    if "Cannot connect" in said or "error during connect" in said or "daemon running" in said:
        return (
            "no Docker Engine answers: start it (Linux: sudo systemctl start docker; macOS and Windows: open Docker "
            "Desktop), or see where DOCKER_HOST and docker context point"
        )
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("WARNING")]
    line = lines[0] if lines else "failed and did not say why"
    for prefix in ("docker: ", "Error response from daemon: ", "Error: "):
        line = line.removeprefix(prefix)
    anew = "; describe the GPUs anew: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml" if "CDI" in line else ""
    return f"{about}: {line}{anew}"


def told() -> dict[str, Any]:
    """Return what the engine tells of itself."""
    told: dict[str, Any] = json.loads(call("info", "--format", "{{json .}}"))
    return told


def cores(told: Mapping[str, Any]) -> int:
    """Return the number of cores of the machine that the engine runs on: on a Mac that is a virtual one."""
    return int(told["NCPU"] if "NCPU" in told else told["host"]["cpus"])  # Docker; Podman


def gpu_count(told: Mapping[str, Any]) -> int:
    """Return how many GPUs the engine can pass to containers by CDI (Container Device Interface).

    Engines from 28.3 on list them. Of older ones the folders of descriptions are looked at, and this machine's driver.
    """
    listed = [str(each.get("ID", "")) for each in told.get("DiscoveredDevices") or () if each.get("Source") == "cdi"]
    if counted := sum(re.fullmatch(rf"{re.escape(CDI)}=\d+", name) is not None for name in listed):
        return counted
    described = any(
        CDI in path.read_text(errors="replace")
        for folder in told.get("CDISpecDirs") or () for path in Path(folder).glob("*.[yj]*")
    )  # fmt: skip
    if not described or not shutil.which(gpus.LIST[0]):
        return 0
    return gpus.counted({"this machine": gpus.LIST})["this machine"]


def image_id(image: str) -> str:
    """Return an image's id."""
    try:
        told = call("image", "inspect", image)
    except MissingError as error:
        if "no such image" not in str(error).lower():
            raise
        raise MissingError(f"{image}: there is no such image: make image") from error
    return str(json.loads(told)[0]["Id"])


def save(image: str, archive: Path) -> None:
    """Write an image into a file that `docker load` reads."""
    call("save", "--output", str(archive), image, about=f"{archive}: docker save")


def torch_build(image: str) -> str | None:
    """Return the build of torch in an image, cpu or cuda, as its label says; None: there is no such image or label."""
    try:
        told = json.loads(call("image", "inspect", image))
    except MissingError:
        return None
    labels = (told[0].get("Config") or {}).get("Labels") or {}
    return str(labels[_TORCH]) if _TORCH in labels else None


def refuse_build(image: str) -> None:
    """Refuse an image that cannot use GPUs, for nodes that have some.

    Raises:
        RefusedError: it holds torch's CPU build.
    """
    if torch_build(image) == "cpu":
        raise RefusedError(f"{image}: holds torch's CPU build, which sees no GPU: make image TORCH=cuda")
