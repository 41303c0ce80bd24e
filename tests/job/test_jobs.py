"""The files in jobs/: every one is right, says which question it answers, and the schema beside them is current."""

import json
from pathlib import Path

import pytest

from draco.job import Job, byzantine_count, parse, schema, warnings

JOBS = Path(__file__).parents[2] / "jobs"
ON_GPUS = sorted(JOBS.glob("gpu/*.yaml"))
FILES = [*sorted(JOBS.glob("*.yaml")), *ON_GPUS]


def read(path: Path) -> Job:
    return parse(path.read_text(), str(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_job_file_is_right_and_is_named_after_its_job(path: Path) -> None:
    assert read(path).name == path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_job_file_begins_with_one_comment_that_asks_its_question(path: Path) -> None:
    first, second, *rest = path.read_text().splitlines()
    assert first.startswith("# ")
    assert "?" in first
    assert not any(line.startswith("#") for line in (second, *rest))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_job_warns_exactly_where_its_question_is_what_happens_without_a_defence(path: Path) -> None:
    assert bool(warnings(read(path))) == ("-mean-" in path.stem)


def test_no_two_jobs_ask_the_same_question() -> None:
    questions = [path.read_text().splitlines()[0] for path in FILES]
    assert len(set(questions)) == len(FILES)


@pytest.mark.parametrize("attack", ["reverse_gradient", "constant"])
@pytest.mark.parametrize("approach", ["mean", "geometric-median", "krum", "repetition", "cyclic"])
@pytest.mark.parametrize(
    ("start", "model", "data"), [("mnist-lenet", "lenet", "mnist"), ("cifar10-resnet18", "resnet18", "cifar10")]
)
def test_every_pair_of_approach_and_attack_of_the_original_has_a_job(
    start: str, model: str, data: str, approach: str, attack: str
) -> None:
    job = read(JOBS / f"{start}-{approach}-{attack.replace('_', '-')}.yaml")
    coded = approach in ("repetition", "cyclic")
    assert (job.model, job.data.name, job.attack.name) == (model, data, attack)
    assert job.scheme.name == (approach if coded else "uncoded")
    assert job.aggregator.name == ("mean" if coded else approach.replace("-", "_"))
    assert byzantine_count(job) == job.scheme.adversaries > 0


@pytest.mark.parametrize("start", ["mnist-lenet", "cifar10-resnet18"])
def test_jobs_on_the_same_data_differ_in_nothing_but_scheme_aggregator_and_attack(start: str) -> None:
    jobs = [read(path) for path in FILES if path.stem.startswith(start) and path not in ON_GPUS]
    assert len(jobs) == 11
    changing = {"name", "scheme", "aggregator", "attack"}
    assert len({job.model_dump_json(exclude=changing) for job in jobs}) == 1


def test_jobs_on_gpus_differ_in_nothing_but_name_between_one_gpu_and_eight() -> None:
    jobs = {path.stem: read(path) for path in ON_GPUS}
    assert {job.device for job in jobs.values()} == {"cuda"}
    for model in ("cifar10-resnet18", "gpt"):
        one, eight = (jobs[f"{model}-{where}"].model_dump_json(exclude={"name"}) for where in ("one-gpu", "8-gpus"))
        assert one == eight


def test_the_quickstart_is_what_the_issue_asks_for() -> None:
    job = read(JOBS / "quickstart.yaml")
    assert (job.workers, job.scheme.name, job.scheme.adversaries, job.attack.name) == (
        9,
        "cyclic",
        1,
        "reverse_gradient",
    )


def test_the_committed_schema_is_current() -> None:
    written = (JOBS / "schema.json").read_text()
    assert written == json.dumps(schema(), indent=2) + "\n", "python -m draco validate --schema > jobs/schema.json"
