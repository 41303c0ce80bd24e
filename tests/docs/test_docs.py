"""The README's commands run, its examples are what the program prints, and its tables name what exists."""

import re
import shlex
from pathlib import Path

import pytest
from checkout import make

from draco.aggregators import AGGREGATORS
from draco.attacks import ATTACKS
from draco.cli.main import main
from draco.cli.parser import build_parser
from draco.data import DATASETS
from draco.job import Job, parse
from draco.job.fields import SECTIONS
from draco.schemes import SCHEMES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"(?:^    .*\n|^\n(?=    ))+", README, re.MULTILINE)
COMMANDS = sorted({c.strip() for c in re.findall(r"(?:^    |`)\$? ?(make [a-z][^`\n]*)", README, re.MULTILINE)})


def test_the_quickstart_trains_over_mpi_under_attack_and_catches_the_liar(checkout: Path) -> None:
    """The README's first command, with fewer steps."""
    assert "make train JOB=jobs/quickstart.yaml" in COMMANDS
    result = make(checkout, "train", "JOB=jobs/quickstart.yaml", "SET=steps=25")
    assert result.returncode == 0, result.stderr
    assert "quickstart: succeeded" in result.stdout
    assert "25 caught, 0 missed, 0 falsely accused" in result.stdout
    accuracy = re.search(r"accuracy\W+([\d.]+)%", result.stdout)
    assert accuracy
    assert float(accuracy[1]) > 60
    evaluated = make(checkout, "eval")
    assert evaluated.returncode == 0
    assert "every checkpoint is evaluated already" in evaluated.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_make_command_of_the_readme_is_one_that_make_knows(checkout: Path, command: str) -> None:
    arguments = [a for a in shlex.split(command)[1:] if a != "..."]
    result = make(checkout, "--dry-run", *arguments)
    assert result.returncode == 0, result.stderr
    for job in re.findall(r"JOB=(jobs/\S+)", command):
        assert (ROOT / job).exists()


def test_make_help_lists_every_target(checkout: Path) -> None:
    printed = make(checkout, "help").stdout
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"train", "test", "eval", "bench", "lint"} <= set(targets)
    assert [t for t in targets if f"  {t} " not in printed] == []


def test_make_train_without_a_job_says_which_to_name(checkout: Path) -> None:
    result = make(checkout, "train")
    assert result.returncode == 2
    assert "make train JOB=jobs/quickstart.yaml" in result.stderr


def test_the_broken_job_of_the_readme_is_refused_in_the_words_of_the_readme(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    (block,) = [b for b in BLOCKS if "broken.yaml" in b]
    said = [line.strip() for line in block.strip().splitlines()[1:]]
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text(
        "name: broken\nworkers: 6\nmodel: lenet\ndata: mnist_5k\nbatch_size: 60\nsteps: 1\n"
        "scheme: {name: cyclic, adversaries: 3}\nshceme: uncoded\n"
    )
    assert main(["validate", "broken.yaml"]) == 2
    assert sorted(capsys.readouterr().err.splitlines()) == sorted(said)


def test_the_example_job_of_the_readme_is_valid() -> None:
    (text,) = [block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "scheme:" in block]
    assert parse(text, "README.md").scheme.name == "cyclic"


def test_every_job_key_of_the_options_table_exists() -> None:
    rows = [line.split("|") for line in README.splitlines() if line.startswith("| `")]
    keys = {key for row in rows if len(row) == 7 for key in re.findall(r"^ `([a-z_.]+)`", row[3])}
    assert len(keys) > 15
    known = {*Job.model_fields, *(f"{s}.{field}" for s, (kind, _) in SECTIONS.items() for field in kind.model_fields)}
    assert keys <= known


def test_every_option_of_the_original_readme_is_in_the_table() -> None:
    options = (
        "n hostfile lr momentum network dataset batch-size comm-type mode approach err-mode adversarial worker-fail "
        "group-size max-steps epochs eval-freq enable-gpu train-dir eval-batch-size model-dir compress-grad "
        "checkpoint-step"
    )
    first = " ".join(line.split("|")[1] for line in README.splitlines() if line.startswith("| `"))
    assert [o for o in options.split() if f"`{o}`" not in first] == []


@pytest.mark.parametrize(
    "table",
    [SCHEMES, AGGREGATORS, [a for a in ATTACKS if a != "none"], DATASETS],
    ids=["schemes", "aggregators", "attacks", "data sets"],
)
def test_the_readme_names_everything_in_the_tables(table) -> None:
    plain = README.lower().replace("-", "").replace("_", "")
    assert [name for name in table if name.replace("_", "") not in plain and not name.startswith("synthetic")] == []


def test_every_option_that_the_readme_gives_to_the_command_line_exists() -> None:
    (commands,) = [a for a in build_parser()._actions if a.dest == "command"]
    known = {option for parser in commands.choices.values() for a in parser._actions for option in a.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known


def test_every_file_that_the_documents_name_exists() -> None:
    text = README + (ROOT / "ARCHITECTURE.md").read_text()
    for name in set(re.findall(r"`((?:draco|tests|jobs|docs)/[\w./-]+)`", text)) | set(
        re.findall(r"\]\(([\w/.]+)\)", text)
    ):
        assert (ROOT / name).exists(), name
