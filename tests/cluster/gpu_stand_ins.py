"""Machines with GPUs that are none: stand-ins for nvidia-smi, NVIDIA's container toolkit and an engine that takes CDI.

They are scripts (tests/aws/fake_aws/stand_ins) that answer what Draco asks and refuse the rest. A GPU is a file.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "aws/fake_aws/stand_ins"
DRIVER = "580.105.08"
A10G = "NVIDIA A10G, 512, 23028, 30"
FAILED = "failed"
SMI, TOOLKIT, ENGINE = {"nvidia-smi": "nvidia-smi"}, {"nvidia-ctk": "nvidia-ctk"}, {"docker": "docker-cdi"}


def put(folder: Path, gpus: Sequence[str]) -> Path:
    """Let a folder have these GPUs and no others, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("nvidia*"):
        old.unlink()
    for number, line in enumerate(gpus):
        (folder / f"nvidia{number}").write_text(f"{line}\n")
    return folder


def install(folder: Path, *tools: dict[str, str]) -> Path:
    """Put stand-ins into a folder for the PATH, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, script in (item for each in tools for item in each.items()):
        shutil.copy(SCRIPTS / script, folder / name)
    return folder
