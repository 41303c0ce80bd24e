"""Checkpoints: everything needed to go on exactly where the run stopped, bit for bit.

    checkpoints/step-00000050.pt     tensors and plain values only; loads with `weights_only=True`
    checkpoints/step-00000050.json   its manifest: size and SHA-256; written last, so it vouches for a whole file

A file is written under a temporary name, synced and renamed, and never overwritten.
"""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from draco.errors import DracoError
from draco.run_directory import replace

Contents = dict[str, Any]


class CheckpointError(DracoError):
    """A checkpoint is not what its manifest says."""


def save(folder: Path, step: int, contents: Contents) -> Path:
    """Write the checkpoint of `step`; where a verified one is there already, leave it as it is."""
    path = folder / f"step-{step:08d}.pt"
    manifest = path.with_suffix(".json")
    if manifest.exists():
        return path
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    raw = buffer.getvalue()
    replace(path, raw)
    summary = {"step": step, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), "torch": torch.__version__}
    replace(manifest, json.dumps(summary, indent=1).encode())
    _sync(folder)
    return path


def load(path: Path) -> Contents:
    """Return a checkpoint's contents on the CPU.

    Raises:
        CheckpointError: the file is missing, cut or changed.
    """
    try:
        summary = json.loads(path.with_suffix(".json").read_text())
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: {error.filename} is missing") from error
    if hashlib.sha256(raw).hexdigest() != summary["sha256"]:
        raise CheckpointError(f"{path}: {len(raw)} bytes whose SHA-256 is not the one in its manifest; delete both")
    contents: Contents = torch.load(io.BytesIO(raw), weights_only=True, map_location="cpu")
    return contents


def steps(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of every checkpoint that has a manifest, oldest first."""
    return [(step_of(m), m.with_suffix(".pt")) for m in sorted(folder.glob("step-*.json"))]


def step_of(path: Path) -> int:
    """Return the step at which a checkpoint was taken."""
    return int(path.stem.removeprefix("step-"))


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint that has a manifest."""
    found = steps(folder)
    return found[-1][1] if found else None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
