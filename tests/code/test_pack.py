"""Packs: their digest, their way, hostile ones, and copies that were touched."""

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draco.code import pack as packs
from draco.code import store
from draco.code.changes import difference
from draco.code.pack import MANIFEST, Pack, dumped, is_safe, limited, loaded, read, verify, write
from draco.errors import OwnCodeError

SMALL = Pack({"task.py": b"x = 1\n", "lib/a.py": b"", "lib/table.bin": bytes(range(256))})
PARTS = st.text(st.characters(min_codepoint=33, max_codepoint=0x24F), min_size=1, max_size=8)
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@given(files=st.dictionaries(PATHS.filter(is_safe), st.binary(max_size=50), max_size=5))
def test_a_pack_comes_as_it_went(files: dict[str, bytes]) -> None:
    pack = Pack(files)
    assert loaded(dumped(pack), pack.digest) == pack


@given(path=PATHS | st.text(max_size=20))
def test_a_safe_path_stays_below_its_folder(path: str) -> None:
    if is_safe(path):
        joined = Path("/a/b", path)
        assert os.path.normpath(joined) == str(joined)
        assert joined.is_relative_to("/a/b")
        assert joined != Path("/a/b")


def test_a_copy_is_read_only_and_verified(tmp_path: Path) -> None:
    write(SMALL, tmp_path / "copy")
    verify(tmp_path / "copy", SMALL.digest)
    assert read(tmp_path / "copy") == SMALL
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "copy").rglob("*") if path.is_file()} == {0o444}
    checked = subprocess.run(["sha256sum", "-c", "--quiet", MANIFEST], cwd=tmp_path / "copy", check=False)
    assert checked.returncode == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("chmod u+w task.py; echo y >> task.py", "task.py was changed"),
        ("rm -f lib/a.py", "lib/a.py is missing"),
        ("touch lib/evil.py", "lib/evil.py was not recorded"),
        (
            "mkdir __pycache__; touch __pycache__/task.cpython-311.pyc",
            "__pycache__/task.cpython-311.pyc was not recorded",
        ),
        ("mv task.py lib/t; ln -s lib/t task.py", "task.py was changed"),
        ("mv lib /tmp/$$; ln -s /tmp/$$ lib", "lib was not recorded"),
        ("chmod u+w .manifest; echo x >> .manifest", "and the run was recorded with"),
        ("rm -f .manifest", "is not there"),
    ],
)
def test_whatever_is_done_to_a_copy_is_an_error(tmp_path: Path, line: str, said: str) -> None:
    write(SMALL, tmp_path / "copy")
    subprocess.run(["bash", "-c", line.replace("/tmp/$$", str(tmp_path / "aside"))], cwd=tmp_path / "copy", check=True)
    with pytest.raises(OwnCodeError, match=said.replace(".", r"\.")):
        verify(tmp_path / "copy", SMALL.digest)


def hostile(**files: str) -> str:
    return json.dumps(
        {path.replace("__", "/"): base64.b64encode(text.encode()).decode() for path, text in files.items()}
    )


@pytest.mark.parametrize(
    "path",
    ["../a.py", "/etc/a.py", "a/../../b.py", "./a.py", "a//b.py", ".manifest", "lib/.hidden", "a\\b", "a\nb", "", "a/",
     "x" * 2000, "\ud800"],
)  # fmt: skip
def test_a_hostile_path_is_refused_before_anything_is_written(path: str) -> None:
    with pytest.raises(OwnCodeError, match="leads elsewhere"):
        loaded(hostile(**{path: "x"}), "0" * 64)


@pytest.mark.parametrize("text", ["", "[]", "1", "{", '{"a": 1}', '{"a": "?"}', '{"a": null}', "[" * 100_000, '"a"'])
def test_what_is_no_pack_is_refused(text: str) -> None:
    with pytest.raises(OwnCodeError, match=r"is no pack"):
        loaded(text, "0" * 64)


def test_another_pack_than_the_one_that_was_announced_is_refused() -> None:
    with pytest.raises(OwnCodeError, match="the pack that came is not 000000000000 but"):
        loaded(dumped(SMALL), "0" * 64)


def test_large_packs_are_refused_with_their_largest_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(packs, "MOST_TEXT", 1 << 21)
    big = Pack({"big.bin": bytes(1 << 20), "small.py": b"x"})
    with pytest.raises(OwnCodeError, match=r"the largest: big\.bin \(1\.0 MiB\), small\.py"):
        limited(big)
    with pytest.raises(OwnCodeError, match="it was not opened"):
        loaded("x" * ((1 << 21) + 1), "")
    with pytest.raises(OwnCodeError, match="10001 files"):
        limited(Pack(dict.fromkeys(map(str, range(10_001)), b"")))


def test_a_diff_has_the_files_and_at_most_forty_lines() -> None:
    changed = SMALL.files | {"task.py": b"x = 2\n", "new.py": b"a\n", "lib/table.bin": b"\xff"}
    shown = difference(SMALL, Pack({path: text for path, text in changed.items() if path != "lib/a.py"}))
    assert shown.splitlines() == [
        "lib/a.py, lib/table.bin, new.py, task.py", "--- recorded/lib/table.bin", "+++ lib/table.bin", "(not text)",
        "--- /dev/null", "+++ new.py", "@@ -0,0 +1 @@", "+a", "--- recorded/task.py", "+++ task.py", "@@ -1 +1 @@",
        "-x = 1", "+x = 2",
    ]  # fmt: skip
    long = difference(SMALL, Pack({**SMALL.files, "task.py": b"y\n" * 100})).splitlines()
    assert len(long) == 42
    assert long[-1] == "... and 64 more lines"
    assert difference(SMALL, SMALL) == ""


def test_a_store_mends_what_was_touched_and_forgets_what_is_old(tmp_path: Path) -> None:
    folder = store.put(SMALL, tmp_path / "s")
    assert store.has(SMALL.digest, tmp_path / "s")
    (folder / "lib/a.py").unlink()
    assert not store.has(SMALL.digest, tmp_path / "s")
    assert store.put(SMALL, tmp_path / "s") == folder
    verify(folder, SMALL.digest)
    other = store.put(Pack({"a": b""}), tmp_path / "s")
    (tmp_path / "s/new-1").mkdir()
    for path, days in ((folder, 31), (tmp_path / "s/new-1", 2), (other, 29)):
        then = time.time() - days * 24 * 3600
        os.utime(path, (then, then))
    store.forget(tmp_path / "s")
    assert list((tmp_path / "s").iterdir()) == [other]


def test_a_node_stores_what_comes_on_its_standard_input_and_says_what_it_has(tmp_path: Path) -> None:
    def node(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "draco.code.store", *words], input=text, cwd=tmp_path, text=True, check=False,
            capture_output=True,
        )  # fmt: skip

    assert "is not there" in node("has", SMALL.digest).stderr
    assert node("put", SMALL.digest, text=hostile(**{"../a": "x"})).returncode == 1
    assert not (tmp_path / "data").exists()
    assert node("put", SMALL.digest, text=dumped(SMALL)).returncode == 0
    assert node("has", SMALL.digest).returncode == 0
