"""docs/extend.md, done: in a copy of the repository each example is a file and an entry of a table, and trains."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkout import make
from conftest import Trained, copied

from draco.job import parse
from draco.runs import events

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/extend.md").read_text()
WRITTEN = dict(re.findall(r"A new file `([\w/.]+)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL))
FILES = {path: text for path, text in WRITTEN.items() if "/" in path}
(OWN_JOB,) = re.findall(r"`mine.yaml`:\n\n```yaml\n(.*?)```", PAGE, re.DOTALL)
(JOB,) = re.findall(r"`toy.yaml`:\n\n```yaml\n(.*?)```", PAGE, re.DOTALL)
TABLES = (  # of draco, table, module, name in it, entry
    ("aggregators", "AGGREGATORS", "draco.aggregators.near_median", "NEAR_MEDIAN", "NEAR_MEDIAN"),
    ("schemes", "SCHEMES", "draco.schemes.quorum", "QUORUM", "QUORUM"),
    ("attacks", "ATTACKS", "draco.attacks.shrink", "SHRINK", "SHRINK"),
    ("models", "MODELS", "draco.models", "linear", '"linear": linear.MODEL'),
)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree with the files of the page, each in its table."""
    folder = copied(tmp_path_factory.mktemp("extended"))
    for path, text in FILES.items():
        (folder / path).write_text(text)
    for part, table, module, name, entry in TABLES:
        path = folder / "draco" / part / "__init__.py"
        text = path.read_text().replace("\nfrom draco", f"\nfrom {module} import {name}\nfrom draco", 1)
        text, found = re.subn(rf"(\n{table}: [^\n]*[({{]\n.*?\n)([)}}])", rf"\1    {entry},\n\2", text, flags=re.DOTALL)
        assert found == 1
        path.write_text(text)
    (folder / "docs").mkdir()
    (folder / "toy.yaml").write_text(JOB)
    return folder


def validate(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    given = [word for override in overrides for word in ("--set", override)]
    command = [sys.executable, "-m", "draco", "validate", "toy.yaml", *given]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_the_page_has_an_example_of_each() -> None:
    assert [Path(path).parent.name for path in FILES] == ["aggregators", "schemes", "protocols", "attacks", "models"]


def test_a_job_with_all_four_trains_to_the_same_bits_over_mpi_and_simulated(extended: Path, data_root: Path) -> None:
    """No other checkout knows the names, so that ranks which import another one would refuse the job."""
    trained: list[Trained] = []
    for how in ([], ["SIMULATE=1"]):
        done = make(extended, "train", "JOB=toy.yaml", "LOCAL=1", f"SET=data.root={data_root}", *how)
        assert done.returncode == 0, done.stdout + done.stderr
        (run,) = {*(extended / "runs").glob("toy-*")} - {one.run for one in trained}
        trained.append(Trained(run))
    over_mpi, simulated = trained
    assert over_mpi.model.numel() == 28 * 28 * 10 + 10
    assert torch.equal(over_mpi.model, simulated.model)
    for one in trained:
        steps = [event for event in events.read(one.run / "events.jsonl") if event["event"] == "step"]
        assert [event["suspects"] == event["byzantine"] != [] for event in steps] == [True] * 3


def test_options_are_accepted_within_their_bounds_and_refused_in_the_usual_words(extended: Path) -> None:
    assert "toy.yaml: valid" in validate(extended).stdout
    wrong = {
        "scheme.groups=0": "scheme.groups: must be a whole number at least 1 and at most 4096, got 0",
        "aggregator.keep=0": "aggregator.keep: must be a whole number at least 1, or null, got 0",
        "attack.magnitude=x": "attack.magnitude: must be a number above 0.0 and at most 1e+30, got 'x'",
        "model=liner": "must be one of",
        "aggregator.kep=1": "aggregator.kep: unknown key; did you mean aggregator.keep?",
    }
    said = validate(extended, *wrong).stderr
    assert [message for message in wrong.values() if message not in said] == []
    assert "got 'liner'; did you mean linear?" in said
    assert "scheme.groups: must be at most n // (2s+1) = 2, got 3" in validate(extended, "scheme.groups=3").stderr
    assert "aggregator.keep: must be at most m - f = 2 gradients" in validate(extended, "aggregator.keep=3").stderr


def test_the_job_with_code_of_ones_own_trains_as_the_page_says(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[..., Trained]
) -> None:
    (tmp_path / "my_rules.py").write_text(WRITTEN["my_rules.py"])
    monkeypatch.chdir(tmp_path)
    job = parse(OWN_JOB, "mine.yaml", [f"data.root={data_root}", "launcher=simulate"])
    done = train(job)
    assert done.status.state == "succeeded"
    (start, *_) = events.read(done.run / "events.jsonl")
    assert start["setting"].startswith("uncoded s=0, normed, near_median (f=1 keep=4), 6 workers; shrink")


def test_schema_and_reference_have_the_options(extended: Path) -> None:
    assert make(extended, "schema").returncode == 0
    schema = json.loads((extended / "jobs/schema.json").read_text())
    groups = schema["$defs"]["scheme_quorum"]["properties"]["groups"]
    assert groups == {
        "default": 1, "description": "Groups, at most n // (2s+1).", "maximum": 4096, "minimum": 1, "type": "integer"
    }  # fmt: skip
    assert "keep" in schema["$defs"]["aggregator_near_median"]["properties"]
    assert "attack_shrink" in schema["$defs"]
    assert "linear" in schema["properties"]["model"]["anyOf"][0]["enum"]
    reference = (extended / "docs/jobs.md").read_text()
    assert "### aggregator: near_median" in reference
    assert "| `linear` | 1 x 1 | no |" in reference
