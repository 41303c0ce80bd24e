"""The documents against the program: commands, options, files and links exist, and examples are what it prints."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import make

from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS
from draco.attacks import ATTACKS
from draco.cli.main import main
from draco.cli.parser import build_parser
from draco.data import DATASETS
from draco.job import Job, parse, warnings
from draco.job.fields import SECTIONS
from draco.models import build_model
from draco.schemes import SCHEMES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
LIBRARY = (ROOT / "docs/library.md").read_text()
ORIGINAL = (ROOT / "docs/coming-from-the-original.md").read_text()
TUTORIAL = (ROOT / "docs/tutorial.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in (".", "docs", "examples", "images", "infra", "ansible", "tests/aws/fake_aws")
    for path in sorted((ROOT / folder).glob("*.md"))
}
LINES = {"README.md": 180, "ARCHITECTURE.md": 200}  # at most
BLOCKS = re.findall(r"(?:^    .*\n|^\n(?=    ))+", README, re.MULTILINE)
# docs/aws.md is read by tests/aws/test_aws_docs.py; the changelog speaks of what was.
SPEAKING = {name: text for name, text in PAGES.items() if name not in ("docs/aws.md", "CHANGELOG.md")}
COMMANDS = sorted({
    re.split(r"\s+# ", command)[0].strip()
    for text in SPEAKING.values()
    for command in re.findall(r"(?:^    |`)\$? ?(make [a-z][^`\n]*)", text, re.MULTILINE)
})  # fmt: skip
# Which a reader is to make, and tests/cli/test_extension.py makes.
OF_THE_READER = {*re.findall(r"A new file `([\w/.]+)`", PAGES["docs/extend.md"]), "my_task.py", "my_rules.py"}
OF_THE_READER |= {"my_loggers.py"}
OF_THE_READER |= {*re.findall(r"A file `([\w.]+)`", PAGES["docs/train-your-own.md"])}
OF_THE_ORIGINAL = {"distributed_nn.py", "tools/pytorch_ec2.py"}
FILES = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT, capture_output=True, text=True, check=True,
).stdout.splitlines()  # fmt: skip


def anchor(heading: str) -> str:
    """Return the anchor that a heading has on a page."""
    return re.sub(r"[^\w -]", "", heading.lower().lstrip("#")).strip().replace(" ", "-")


def test_the_quickstart_trains_over_mpi_under_attack_and_catches_the_byzantine_worker(checkout: Path) -> None:
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


@pytest.mark.parametrize(("name", "most"), LINES.items())
def test_the_first_pages_stay_short(name: str, most: int) -> None:
    assert len(PAGES[name].splitlines()) <= most


@pytest.mark.parametrize("command", COMMANDS)
def test_every_make_command_is_one_that_make_knows(command: str) -> None:
    arguments = [a for a in shlex.split(command)[1:] if a != "..."]
    result = make(ROOT, "--dry-run", *arguments)
    assert result.returncode == 0, result.stderr
    for job in re.findall(r"(?:JOB|GRID)=(jobs/\S+)", command):
        assert (ROOT / job).exists()
    makefile = (ROOT / "Makefile").read_text() + (ROOT / "images/build.sh").read_text()
    assert [name for name in re.findall(r"\b([A-Z_]+)=", command) if not re.search(rf"\b{name}\b", makefile)] == []


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.search(r"train JOB=jobs/.* SET=", c)])
def test_every_override_of_a_job_is_one_that_the_job_takes(command: str) -> None:
    given = dict(word.split("=", 1) for word in shlex.split(command) if re.match("JOB|SET", word))
    overrides = given["SET"].split()
    if "aggregator=my_rules.py:near_median" in overrides:  # the tutorial's own
        overrides[overrides.index("aggregator=my_rules.py:near_median")] = "aggregator=median"
    assert parse((ROOT / given["JOB"]).read_text(), given["JOB"], overrides)


def test_make_help_lists_every_target() -> None:
    printed = make(ROOT, "help").stdout
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"train", "test", "eval", "bench", "lint"} <= set(targets)
    assert [t for t in targets if f"  {t} " not in printed] == []


def test_make_train_without_a_job_says_which_to_name() -> None:
    result = make(ROOT, "train")
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


def test_the_job_of_the_page_on_training_is_valid_and_has_every_key_of_it() -> None:
    page = PAGES["docs/training.md"]
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    job = parse(text, "docs/training.md")
    assert warnings(job) == []
    keys = ("clip_norm", "ema", "weights", "micro_batch", "autocast", "recompute")
    assert [key for key in keys if getattr(job, key) == Job.model_fields[key].default] == []
    assert build_model(job.model, DATASETS[job.data.name].shape, 10, 1).get_submodule("features.0")
    assert all(f"`{option}`" in page for option in SECTIONS["weights"].kinds[""].model_fields if option != "file")


def test_the_python_of_the_tutorial_prints_what_the_tutorial_says() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)
    (said,) = re.findall(r"```text\n(.*?)```", TUTORIAL, re.DOTALL)
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == said


def test_every_job_key_of_the_options_table_exists() -> None:
    rows = [line.split("|") for line in ORIGINAL.splitlines() if line.startswith("| `")]
    keys = {key for row in rows if len(row) == 7 for key in re.findall(r"^ `([a-z_.]+)`", row[3])}
    assert len(keys) > 15
    kinds = [(key, kind) for key, part in SECTIONS.items() for kind in part.kinds.values()]
    known = {*Job.model_fields, *(f"{key}.{field}" for key, kind in kinds for field in kind.model_fields)}
    assert keys <= known


def test_every_option_of_the_original_readme_is_in_the_table() -> None:
    options = (
        "n hostfile lr momentum network dataset batch-size comm-type mode approach err-mode adversarial worker-fail "
        "group-size max-steps epochs eval-freq enable-gpu train-dir eval-batch-size model-dir compress-grad "
        "checkpoint-step"
    )
    first = " ".join(line.split("|")[1] for line in ORIGINAL.splitlines() if line.startswith("| `"))
    assert [o for o in options.split() if f"`{o}`" not in first] == []


@pytest.mark.parametrize(
    "table",
    [SCHEMES, AGGREGATORS, PRE_AGGREGATORS, [a for a in ATTACKS if a != "none"], DATASETS],
    ids=["schemes", "aggregators", "pre-aggregators", "attacks", "data sets"],
)
def test_the_readme_names_everything_in_the_tables(table) -> None:
    plain = README.lower().replace("-", "").replace("_", "")
    assert [name for name in table if name.replace("_", "") not in plain and not name.startswith("synthetic")] == []


@pytest.mark.parametrize(
    "table",
    [SCHEMES, AGGREGATORS, PRE_AGGREGATORS, [a for a in ATTACKS if a != "none"]],
    ids=["schemes", "aggregators", "pre-aggregators", "attacks"],
)
def test_the_library_page_describes_everything_in_the_tables(table) -> None:
    assert [name for name in table if f"`{name}`" not in LIBRARY] == []


@pytest.mark.parametrize("page", SPEAKING)
def test_every_option_that_is_given_to_the_command_line_exists(page: str) -> None:
    (commands,) = [a for a in build_parser()._actions if a.dest == "command"]
    known = {option for parser in commands.choices.values() for a in parser._actions for option in a.option_strings}
    spans = [span for span in re.findall(r"`([^`]+)`", PAGES[page]) if re.match(r"(\.venv/bin/)?draco |--[a-z]", span)]
    spoken = "\n".join(spans) if page != "README.md" else README
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", spoken))
    assert named - {"--cap-add", "--err-mode"} <= known  # docker's, the original's


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if re.match(r"https?://", target):
            continue
        path, _, heading = target.partition("#")
        found = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert found.exists(), target
        lines = found.read_text().splitlines() if heading else []
        assert not heading or heading in [anchor(line) for line in lines if line.startswith("#")], target


@pytest.mark.parametrize("page", [*SPEAKING, "docs/aws.md"])
def test_every_file_that_is_named_exists(page: str) -> None:
    text = PAGES[page]
    paths = re.findall(r"`((?:draco|tests|jobs|docs|benchmarks|images|infra|ansible)/[\w./-]+)`", text)
    for name in set(paths) - OF_THE_READER:
        assert (ROOT / name).exists() or (ROOT / page).parent.joinpath(name).exists(), name
    for name in set(re.findall(r"(?<![\w./<*-])[\w/]+\.py\b", text)) - OF_THE_ORIGINAL - OF_THE_READER:
        assert any(f"/{file}".endswith(f"/{name}") for file in FILES), name


def test_every_page_of_docs_is_in_its_list() -> None:
    listed = set(re.findall(r"^\| \[([\w-]+\.md)\]", PAGES["docs/README.md"], re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
