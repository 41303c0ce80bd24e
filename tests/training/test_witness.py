"""Recorded models of short runs of every scheme: a restructuring must not change what is computed."""

import json
from pathlib import Path

import pytest
import witness

from draco.schemes import CODES

RECORDED = json.loads(witness.RECORD.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("witness")


def test_every_scheme_has_a_witness() -> None:
    assert {name.partition(",")[0] for name in RECORDED["runs"]} >= set(CODES)


@pytest.mark.parametrize("name", witness.RUNS)
def test_a_recorded_run_gives_the_model_that_it_gave(folder: Path, name: str) -> None:
    """The bits where torch and the processor are those of the record; elsewhere the losses and the length."""
    recorded, got = RECORDED["runs"][name], witness.run(name, folder)
    assert got["suspects"] == recorded["suspects"]
    assert got["losses"] == pytest.approx(recorded["losses"], rel=1e-4)
    assert got["norm"] == pytest.approx(recorded["norm"], rel=1e-6)
    if witness.machine() == RECORDED["machine"]:
        assert got["sha256"] == recorded["sha256"]
