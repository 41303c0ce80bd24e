"""The Makefile hands every value to draco as it was written: spaces, quotes and dollars mean nothing to a shell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from draco.cli.parser import build_parser

ROOT = Path(__file__).parents[2]
SHOWING = f"{sys.executable} -Sc 'import json, sys; print(json.dumps(sys.argv[1:]))'"


def words(target: str, *values: str, limit_s: float = 30) -> list[str]:
    """Return the arguments that a target gives to draco."""
    made = subprocess.run(
        ["make", "--no-print-directory", "-o", ".venv/ready", "-o", ".venv/ready-cluster", f"DRACO={SHOWING}", target,
         *values],
        cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    found: list[str] = json.loads(made.stdout)
    return found


@pytest.mark.parametrize(
    "value", ["my job.yaml", "it's.yaml", 'a "b" c', "a;b", "$(no)$x", "a$b", "`x`", "jobs/*.yaml", "ü"]
)
def test_a_value_is_one_argument_as_it_was_written(value: str) -> None:
    assert words("train", f"JOB={value}") == ["train", value]
    assert words("compare", f"GRID={value}", f"PROCESSES={value}") == ["compare", value, "--processes", value]
    assert words("stop", f"RUN={value}", f"NAME={value}") == ["stop", value, "--on", value]


def test_a_home_is_looked_up() -> None:
    assert words("train", "JOB=~/a job.yaml") == ["train", str(Path("~/a job.yaml").expanduser())]


def test_what_is_not_given_is_no_argument() -> None:
    assert words("eval") == ["eval"]
    assert words("cluster-up") == ["cluster", "up"]
    assert words("ssh", "NODE=head") == ["cluster", "ssh", "head"]


def test_several_runs_are_several_arguments_and_one_with_spaces_is_one(tmp_path: Path) -> None:
    run = tmp_path / "my runs" / "a"
    run.mkdir(parents=True)
    assert words("report", "RUN=runs/a runs/b", f"HTML={run}") == ["report", "runs/a", "runs/b", "--html", str(run)]
    assert words("report", f"RUN={run}") == ["report", str(run)]
    assert words("report", f"RUN='{run}' runs/b") == ["report", str(run), "runs/b"]
    assert words("validate", "JOB=a.yaml b.yaml") == ["validate", "a.yaml", "b.yaml"]


@pytest.mark.parametrize(
    ("text", "assignments"),
    [
        ("attack={name: constant}", ["attack={name: constant}"]),
        ("attack={name: constant, value: 2} steps=5", ["attack={name: constant, value: 2}", "steps=5"]),
        ("attack=random  optimizer.lr=0.1 ", ["attack=random", "optimizer.lr=0.1"]),
        ("name=it's worker-fail=2", ["name=it's", "worker-fail=2"]),
        ("steps", ["steps"]),
    ],
)
def test_values_of_a_job_may_hold_spaces(text: str, assignments: list[str]) -> None:
    given = words("train", "JOB=a.yaml", f"SET={text}", "NEW=1")
    assert build_parser().parse_args(given).set == assignments


def test_settings_of_a_cloud_are_given_with_those_that_have_a_word_of_their_own() -> None:
    given = words("cluster-up", "CLUSTER=aws", "SET=worker_types=m5.large, m6i.large zone=a", "HOURS=4")
    assert build_parser().parse_args(given).set == ["worker_types=m5.large, m6i.large", "zone=a", "hours=4"]
