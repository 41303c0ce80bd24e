"""Checkpoints: whole or not there."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draco.training import checkpoint

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
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(checkpoint.CheckpointError, match=f"has {size - 1} bytes, its manifest says {size}"):
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


def vouch(path: Path, **changes: object) -> Path:
    """Write the manifest that vouches for what is in the file, `changes` aside."""
    raw = path.read_bytes()
    said = {"step": 1, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), **changes}
    path.with_suffix(".json").write_text(json.dumps(said))
    return path


def refused(path: Path, limit: int | None = None) -> str:
    """Return why a checkpoint is refused, in one line."""
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoint.load(path, limit)
    assert str(caught.value) == f"{path}: {caught.value.why}"
    assert caught.value.why.isprintable()
    return caught.value.why


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "plain-pickle"])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, archive: bool, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # whatever the user's environment says
    path, marker = tmp_path / "step-00000001.pt", tmp_path / "it-ran"
    torch.save({"step": 1, "model": Malicious(marker)}, path, _use_new_zipfile_serialization=archive)
    assert refused(vouch(path)).startswith("it does not load as tensors and plain values (")
    assert not marker.exists()
    torch.load(path, weights_only=False).popitem()[1].close()
    assert marker.exists()  # it would have


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain", tmp_path / "step-00000001.pt"
    torch.save({"model": torch.zeros(1 << 20)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small:
        for part in source.infolist():
            small.writestr(part.filename, source.read(part))
    assert path.stat().st_size < 1 << 14
    assert refused(vouch(path)) == "it is compressed, as no checkpoint of Draco is"


def test_what_holds_no_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.pt"
    torch.save([1, 2], path)
    assert refused(vouch(path)) == "it holds a list instead of a dict"


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 50_000, "not JSON"),
        (b"[1, 2]", "must hold the numbers"),
        (b'"step"', "must hold the numbers"),
        (b'{"step": 1, "bytes": "9", "sha256": "a"}', "must hold the numbers"),
        (b'{"step": true, "bytes": 9, "sha256": "a"}', "must hold the numbers"),
        (b'{"step": 1, "bytes": 9}', "must hold the numbers"),
        (b'{"step": 7, "bytes": 9, "sha256": "a"}', "is of step 7"),
        (b'{"step": 1, "bytes": -1, "sha256": "a"}', "its manifest says -1"),
        (b'{"step": 1, "bytes": 1e3, "sha256": "a"}', "must hold the numbers"),
        (b'{"step": 1, "bytes": ' + b"9" * 5000 + b', "sha256": "a"}', "not JSON"),
        (b" " * (1 << 20), "more than 65536 bytes"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, manifest: bytes, why: str) -> None:
    path = checkpoint.save(tmp_path, 1, CONTENTS)
    path.with_suffix(".json").write_bytes(manifest)
    assert why in refused(path)


@pytest.mark.parametrize("changes", [{"bytes": 5}, {"sha256": "0" * 64}, {"step": 2}, {"sha256": "x"}])
def test_a_manifest_with_false_claims_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    refused(vouch(checkpoint.save(tmp_path, 1, CONTENTS), **changes))


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, CONTENTS)
    os.truncate(path, 1 << 42)  # sparse; nobody has the memory
    assert f"has {1 << 42} bytes" in refused(path)
    path.with_suffix(".json").write_text(json.dumps({"step": 1, "bytes": 1 << 42, "sha256": "0" * 64}))
    assert "this job needs at most 1000" in refused(path, limit=1000)


def directory(path: Path) -> None:
    path.mkdir()
    (path / "inside").touch()


@pytest.mark.parametrize("suffix", [".pt", ".json"])
@pytest.mark.parametrize(
    ("put", "why"),
    [
        (directory, "is not a file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (os.mkfifo, "is not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
        (lambda path: path.symlink_to("nowhere"), "is missing"),
        (lambda path: None, "is missing"),
    ],
    ids=["directory", "loop", "pipe", "device", "dangling", "missing"],
)
def test_what_is_no_file_is_refused_and_set_aside_by_the_next_save(tmp_path: Path, suffix: str, put, why: str) -> None:
    path = checkpoint.save(tmp_path, 1, CONTENTS)
    path.with_suffix(suffix).unlink()
    put(path.with_suffix(suffix))
    assert why in refused(path)
    saved = checkpoint.save(tmp_path, 1, CONTENTS)
    assert checkpoint.load(saved)["step"] == 3
    assert checkpoint.steps(tmp_path) == [(1, saved)]


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:-1] + b"x", lambda raw: b""])
def test_a_checkpoint_that_is_not_whole_is_set_aside_and_written_anew(tmp_path: Path, damage) -> None:
    for attempt in ("", "-2"):
        path = checkpoint.save(tmp_path, 3, CONTENTS)
        bad = damage(path.read_bytes())
        path.write_bytes(bad)
        assert checkpoint.save(tmp_path, 3, CONTENTS) == path
        assert checkpoint.load(path)["step"] == 3
        assert (tmp_path / f"step-00000003.pt.refused{attempt}").read_bytes() == bad
        assert (tmp_path / f"step-00000003.json.refused{attempt}").exists()


def take(folder: Path, refuse=lambda path, why: None, fits=lambda step: True) -> tuple[str, int]:
    """Return the name of the newest usable checkpoint and the step in it."""
    taken: list[int] = []

    def restore(step: int, contents: checkpoint.Contents) -> None:
        if not fits(step):
            raise checkpoint.CheckpointError("it does not fit")
        taken.append(contents["step"])

    path = checkpoint.newest_usable(folder, 1 << 20, restore, refuse)
    assert path is not None
    (step,) = taken
    return path.name, step


def test_the_newest_that_can_be_used_is_and_the_newer_ones_are_set_aside_with_their_reasons(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, {"step": step})
    (tmp_path / "step-00000004.pt").write_bytes(b"garbage")
    (tmp_path / "step-foo.json").write_text("not ours")
    said: list[tuple[str, str]] = []
    got = take(tmp_path, lambda path, why: said.append((path.name, why)), lambda step: step != 3)
    assert got == ("step-00000002.pt", 2)
    assert [name for name, _ in said] == ["step-00000004.pt", "step-00000003.pt"]
    assert said[0][1].startswith("has 7 bytes")
    assert said[1][1] == "it does not fit"
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [1, 2]
    assert len(list(tmp_path.glob("*.refused"))) == 4
    assert checkpoint.load(checkpoint.save(tmp_path, 3, {"step": 33}))["step"] == 33


def test_where_none_can_be_used_all_are_named_and_nothing_is_moved(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert checkpoint.newest_usable(folder, 1, lambda step, contents: None, lambda path, why: None) is None
    for step in (1, 2):
        checkpoint.save(folder, step, CONTENTS).write_bytes(b"")
    before = sorted(folder.iterdir())
    with pytest.raises(checkpoint.CheckpointError) as caught:
        take(folder)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: none of its checkpoints can be used (step-00000002.pt: has 0 bytes")
    assert "step-00000001.pt: has 0 bytes" in message
    assert f"delete {folder}/step-* to start anew" in message
    assert sorted(folder.iterdir()) == before


def test_what_was_set_aside_is_not_forgotten(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, CONTENTS)
    checkpoint.set_aside(path)
    with pytest.raises(checkpoint.CheckpointError, match=r"step-00000001\.pt\.refused: refused before"):
        take(tmp_path)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    for step in (1, 2):
        checkpoint.save(folder, step, {"step": step, "model": {"w": torch.arange(64.0) + step}})
    return folder


@settings(max_examples=150)
@given(st.data())
def test_whatever_bits_flip_and_wherever_files_are_cut_the_newest_whole_one_is_used(two: Path, choices) -> None:
    """In the file or its manifest; a change that the manifest does not see changes nothing that matters."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(two, Path(temporary) / "copy"))
        path = folder / f"step-00000002{choices.draw(st.sampled_from(['.pt', '.json']))}"
        raw = bytearray(path.read_bytes())
        if choices.draw(st.booleans()):
            del raw[choices.draw(st.integers(0, len(raw) - 1)) :]
        else:
            for bit in choices.draw(st.lists(st.integers(0, 8 * len(raw) - 1), min_size=1, max_size=3, unique=True)):
                raw[bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        name, step = take(folder)
        assert name == f"step-0000000{step}.pt"
        assert step == 1 or path.suffix == ".json"  # the manifest also holds spaces and torch's version


@settings(max_examples=100)
@given(st.data())
def test_garbage_that_its_manifest_vouches_for_is_refused_or_loaded_but_nothing_else(two: Path, choices) -> None:
    """Somebody who can change a checkpoint can change its manifest: the unpickler meets anything at all."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "step-00000001.pt"
        raw = bytearray((two / "step-00000001.pt").read_bytes())
        if choices.draw(st.booleans()):
            raw = bytearray(choices.draw(st.binary(max_size=300)))
        for _ in range(choices.draw(st.integers(1, 8)) if raw else 0):
            raw[choices.draw(st.integers(0, len(raw) - 1))] = choices.draw(st.integers(0, 255))
        path.write_bytes(raw)
        with contextlib.suppress(checkpoint.CheckpointError):
            assert type(checkpoint.load(vouch(path))) is dict
