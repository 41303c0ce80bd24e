"""Checkpoints are whole or not there."""

import json
from pathlib import Path

import pytest
import torch

from draco import checkpoint

CONTENTS = {"step": 3, "model": {"w": torch.arange(4.0)}, "ledger": {"suspicions": {2: 5}}}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    loaded = checkpoint.load(checkpoint.save(tmp_path, 3, CONTENTS))
    assert loaded["ledger"] == {"suspicions": {2: 5}}
    assert torch.equal(loaded["model"]["w"], torch.arange(4.0))


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 3, CONTENTS)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(checkpoint.CheckpointError, match="SHA-256"):
        checkpoint.load(path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 3, CONTENTS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(checkpoint.CheckpointError, match="SHA-256"):
        checkpoint.load(path)


def test_a_file_without_a_manifest_does_not_count(tmp_path: Path) -> None:
    old = checkpoint.save(tmp_path, 3, CONTENTS)
    new = checkpoint.save(tmp_path, 6, CONTENTS)
    new.with_suffix(".json").unlink()
    assert checkpoint.newest(tmp_path) == old
    assert checkpoint.steps(tmp_path) == [(3, old)]


def test_a_verified_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 3, CONTENTS)
    before = path.read_bytes()
    checkpoint.save(tmp_path, 3, {"step": 3, "model": {}})
    assert path.read_bytes() == before


def test_nothing_temporary_is_left(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 3, CONTENTS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003.json", "step-00000003.pt"]
    assert json.loads((tmp_path / "step-00000003.json").read_text())["step"] == 3


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    """Loading goes through `weights_only`: a pickled call is refused even where the manifest agrees with the file."""
    path = tmp_path / "step-00000001.pt"
    torch.save({"step": Path("x")}, path)  # any object that is neither a tensor nor a plain value
    import hashlib

    manifest = {"step": 1, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        checkpoint.load(path)
