"""The reference of job files: docs/jobs.md is what the tables give, and it leaves nothing out."""

import re
from pathlib import Path

import pytest

from draco.cli.main import main
from draco.job import Job
from draco.job.fields import PRE_AGGREGATOR, SECTIONS
from draco.job.reference import TABLES, least_rule, reference

PAGE = (Path(__file__).parents[2] / "docs/jobs.md").read_text()
SECTION = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", PAGE, re.MULTILINE))
PARTS = {**SECTIONS, "aggregator.pre": PRE_AGGREGATOR}


def entries(section: str) -> dict[str, str]:
    """Return what the page says of every name of a section."""
    return dict(re.findall(r"^### [\w.]+: (\w+)\n((?:(?!###).*\n)*)", SECTION[section], re.MULTILINE))


def test_the_committed_page_is_current() -> None:
    assert reference() + "\n" == PAGE, "make schema"


def test_the_command_prints_it(capsys) -> None:
    assert main(["validate", "--reference"]) == 0
    assert capsys.readouterr().out == PAGE


def test_every_key_of_a_job_has_a_row_and_every_section_a_heading() -> None:
    assert re.findall(r"^\| `(\w+)`", SECTION["Keys of a job"], re.MULTILINE) == [*Job.model_fields]
    assert {*PARTS} <= {*SECTION}


@pytest.mark.parametrize("key", PARTS)
def test_every_option_of_every_name_has_a_row(key: str) -> None:
    told = entries(key) if key in TABLES else {"": ""}
    assert [*told] == [*PARTS[key].kinds]
    common = SECTION[key].partition("\n### ")[0]
    for name, kind in PARTS[key].kinds.items():
        rows = re.findall(r"^\| `(\w+)`", common + told[name], re.MULTILINE)
        assert {*kind.model_fields} - {"name"} <= {*rows}


def test_bounds_defaults_conditions_and_the_least_number_are_told() -> None:
    krum, placement = entries("aggregator")["krum"], entries("scheme")["placement"]
    assert "At least 2f + 3 gradients." in krum
    assert "| `neighbours` | a whole number at least 1, or null | `null` |" in krum
    assert "Only with `vote` auto or tolerance. |" in placement
    assert "| `step_size_steps` | a whole number at least 1 | must be given |" in entries("schedule")["step"]
    assert "| `fixed`; `placed` for `adjacent`, `split_vote`, `whole_group` |" in SECTION["attack"]


def test_least_numbers_on_no_line_are_listed() -> None:
    assert least_rule("f", lambda f: f) == "f"
    assert least_rule("s", lambda s: 1) == "1"
    assert least_rule("f", lambda f: f * f + 1) == "1, 2, 5, 10 ... (for f = 0, 1, 2, 3 ...)"
