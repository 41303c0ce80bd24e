"""Whole jobs under every attack: the codes give the attack-free model, and nobody else is accused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import JOB, Trained

from draco import data, files
from draco.attacks import ATTACKS, moments
from draco.job import Job, parse, to_yaml
from draco.runs import directory as run_directory
from draco.runs import events
from draco.sampling import derive_seed, draw_rows
from draco.schemes import SCHEMES
from draco.tasks.images import Images
from draco.training import adversary, build, process
from draco.training.gradients import StepVectors
from draco.training.process import simulated_workers
from draco.training.transport import Task
from draco.training.worker import Worker, build_vectors

Make = Callable[..., Job]
SMALL = ("workers=6", "batch_size=6", "steps=2")
CODES = {name: (*SMALL, f"scheme={{name: {name}, adversaries: {s}}}") for name, s in (("repetition", 1), ("cyclic", 2))}
SECRET = bytes.fromhex("11" * 32)  # of conftest.train
# They may send what an honest worker would: the reply of a row in the same group, or an error too small to tell.
HARMLESS = ("mimic", "tiny")


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Callable[[str], torch.Tensor]:
    """Return the attack-free model of a code; each is trained once."""
    trained: dict[str, torch.Tensor] = {}

    def model(code: str) -> torch.Tensor:
        if code not in trained:
            job = parse(JOB, "test", [f"data.root={data_root}", *CODES[code]])
            run = run_directory.create(tmp_path_factory.mktemp("honest"), job.name, to_yaml(job))
            files.replace(run / "secret", SECRET.hex().encode())
            process.serve_all(build.Built(job), run)
            trained[code] = model_of(run)
        return trained[code]

    return model


def model_of(run: Path) -> torch.Tensor:
    return Trained(run).model


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [e for e in events.read(run / "events.jsonl") if e["event"] == "step"]


def end_of(run: Path) -> dict[str, Any]:
    return [e for e in events.read(run / "events.jsonl") if e["event"] == "end"][-1]


def byzantine_of(job: Job, step: int) -> list[int]:
    groups = build.build_scheme(job).groups()
    rows = draw_rows(SECRET, step, job.workers, groups)
    return list(adversary.byzantine(job, step, rows, groups))


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "none"])
@pytest.mark.parametrize("code", CODES)
def test_a_code_gives_the_attack_free_model_under_every_attack(
    make_job: Make, train, honest, code: str, name: str
) -> None:
    if ATTACKS[name].fault(SCHEMES[code]):
        return
    if name.endswith("_optimised") and code == "cyclic":
        return  # test_attacks has them, on shorter vectors: they decode some twenty times for every reply
    job = make_job(*CODES[code], f"attack={{name: {name}, {'z: 1.5' if name == 'alie' else ''}}}")
    run = train(job).run
    model = model_of(run)
    if code == "repetition":
        assert torch.equal(model, honest(code))
    else:
        assert distance(model, honest(code)) < 1e-5
    end = end_of(run)
    lied = sum(len(byzantine_of(job, step)) for step in (1, 2))
    assert end["falsely_accused"] == 0
    if ATTACKS[name].truthful:
        assert (end["caught"], end["missed"]) == (0, 0)
    elif name in HARMLESS:
        assert end["caught"] + end["missed"] == lied
    else:
        assert (end["caught"], end["missed"]) == (lied, 0)
        assert [e["suspects"] for e in steps_of(run)] == [byzantine_of(job, step) for step in (1, 2)]


@pytest.mark.parametrize("name", ["alie", "mimic", "adjacent", "orthogonal_to_projection", "label_flip", "nan"])
def test_the_papers_code_gives_the_attack_free_model_too(make_job: Make, train, name: str) -> None:
    coded = (*SMALL, "scheme={name: cyclic_dft, adversaries: 2}")
    job = make_job(*coded, f"attack={{name: {name}, {'z: 1.5' if name == 'alie' else ''}}}")
    trained = train(job)
    assert distance(trained.model, train(make_job(*coded)).model) < 1e-6
    assert [e["suspects"] for e in steps_of(trained.run)] == [byzantine_of(job, step) for step in (1, 2)]


@pytest.mark.parametrize("who", ["fixed", "drawn", "rotating", "placed"])
@pytest.mark.parametrize("code", CODES)
def test_the_ledger_counts_whoever_attacks_and_only_while_they_do(make_job: Make, train, code: str, who: str) -> None:
    attack = f"{{name: sign_flip, who: {who}, fraction: 0.17, from_step: 2, until_step: 4}}"
    job = make_job(*CODES[code], "steps=5", f"attack={attack}")
    run = train(job).run
    expected = [byzantine_of(job, step) for step in range(1, 6)]
    assert [len(byzantine) for byzantine in expected] == [0, 1, 1, 1, 0]
    assert [e["suspects"] for e in steps_of(run)] == expected
    assert (end_of(run)["caught"], end_of(run)["missed"], end_of(run)["falsely_accused"]) == (3, 0, 0)


def test_placed_byzantine_workers_sit_side_by_side_or_in_one_group(make_job: Make) -> None:
    for code, s in (("cyclic", 2), ("repetition", 3)):
        job = make_job("workers=14", "batch_size=14", f"scheme={{name: {code}, adversaries: {s}}}", "attack=adjacent")
        groups = build.build_scheme(job).groups()
        for step in range(1, 20):
            rows = draw_rows(SECRET, step, 14, groups)
            sitting = sorted(rows[rank - 1] for rank in byzantine_of(job, step))
            assert len(sitting) == s
            if groups is None:
                assert (sitting[1] - sitting[0]) % 14 in (1, 13)
            else:
                assert len({groups[row] for row in sitting}) == 1
        with pytest.raises(ValueError, match="not known without the workers' rows"):
            adversary.byzantine(job, 1)


@pytest.mark.parametrize(("name", "leaked"), [("adjacent", 7), ("sign_flip", 0), ("none", 0)])
def test_tasks_tell_more_only_where_byzantine_workers_are_presumed_to_know_it(
    make_job: Make, train, name: str, leaked: int
) -> None:
    tasks: list[Task] = []

    def watching(w: Worker):
        def reply(task: Task, model: torch.Tensor, frame: torch.Tensor) -> int | None:
            tasks.append(task)
            return w.reply(task, model, frame)

        return reply

    run = train(make_job(*CODES["cyclic"], f"attack={name}"), replace={2: watching}).run
    assert [len(task.leak) for task in tasks] == [leaked] * 2
    for task in tasks:
        assert task.leak[1:] == (tuple(draw_rows(SECRET, task.step, 6)) if leaked else ())
        assert derive_seed(SECRET, "projections", task.step) not in task.leak
    assert end_of(run)["falsely_accused"] == 0


def test_only_workers_that_may_be_byzantine_are_more_than_honest_ones(make_job: Make) -> None:
    for attack, byzantine in (
        ("none", []),
        ("{name: alie, z: 1.0, ranks: [2, 5], from_step: 3}", [2, 5]),
        ("{name: zero, who: drawn}", [1, 2, 3, 4, 5, 6]),
    ):
        job = make_job(*CODES["cyclic"], f"attack={attack}")
        workers = simulated_workers(build.Built(job))
        assert [worker.rank for worker in workers if not isinstance(worker, Worker)] == byzantine


@pytest.mark.parametrize(
    ("name", "gradients"),
    # of 6 workers 2 lie: by their own gradient, by nothing, by the others', by those for other labels
    [("sign_flip", 6), ("random", 4), ("alie", 4), ("mimic", 4), ("label_flip", 6), ("ipm_optimised", 6)],
)
def test_a_simulated_step_computes_no_gradient_twice_and_none_that_no_lie_is_made_of(
    make_job: Make, train, name: str, gradients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[tuple[int, int]] = []
    compute = StepVectors.partition

    def counting(self: StepVectors, step: int, partition: int, out: torch.Tensor) -> None:
        computed.append((step, partition))
        compute(self, step, partition, out)

    monkeypatch.setattr(StepVectors, "partition", counting)
    strength = ", z: 1.5" if name == "alie" else ""
    train(make_job(*SMALL, "aggregator={name: median, f: 2}", f"attack={{name: {name}, adversaries: 2{strength}}}"))
    assert [sum(at == step for at, _ in computed) for step in (1, 2)] == [gradients] * 2
    assert len(set(computed)) == len(computed)


@pytest.mark.parametrize(("name", "function"), [("alie", "mean_and_spread"), ("mimic", "furthest")])
def test_what_colluders_share_is_worked_out_once_a_step(
    make_job: Make, train, name: str, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[torch.Tensor] = []
    compute = getattr(moments, function)
    monkeypatch.setattr(moments, function, lambda rows: (calls.append(rows), compute(rows))[1])
    train(make_job(*SMALL, f"attack={{name: {name}, adversaries: 3{', z: 1.5' if name == 'alie' else ''}}}"))
    assert [len(rows) for rows in calls] == [3, 3]


# --- the attacks hurt where nothing defends --------------------------------------------------------------------------


def test_without_a_defence_ipm_stops_training_where_its_formula_says_so(make_job: Make, train) -> None:
    """The mean is (n - f - f epsilon) / n times the honest one: with epsilon = (n - f) / f nothing moves."""
    job = make_job(*SMALL, "steps=1", "attack={name: ipm, epsilon: 2.0, adversaries: 2}")
    start = torch.cat([p.detach().flatten().double() for p in initial(job).parameters()])
    free = train(make_job(*SMALL, "steps=1")).model
    assert distance(free, start) > 1e-3
    assert distance(train(job).model, start) < 1e-7


def test_without_a_defence_alie_moves_the_model_as_its_formula_says(make_job: Make, train) -> None:
    job = make_job(*SMALL, "steps=1", "attack={name: alie, z: 3.0, adversaries: 2}")
    built = build.Built(job)
    vectors = build_vectors(built)
    rows = torch.empty(6, vectors.elements)
    for partition, out in enumerate(rows):
        vectors.partition(1, partition, out)
    sitting = draw_rows(SECRET, 1, 6)
    byzantine = [sitting[rank - 1] for rank in byzantine_of(job, 1)]
    others = rows[[row for row in range(6) if row not in byzantine], : vectors.parameters].double()
    gradient = others.mean(0) - 2 / 6 * 3.0 * others.std(0, correction=0)
    start = torch.cat([p.detach().flatten().double() for p in initial(job).parameters()])
    torch.testing.assert_close(train(job).model, start - 0.05 * gradient, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("name", ["ipm_optimised", "alie_optimised"])
def test_the_optimised_attacks_move_the_jobs_own_rule_further_than_the_plain_ones(
    make_job: Make, train, name: str
) -> None:
    rule = (*SMALL, "steps=1", "aggregator={name: median, f: 2}")
    free = train(make_job(*rule)).model
    moved = [
        distance(train(make_job(*rule, f"attack={{name: {attack}, adversaries: 2}}")).model, free)
        for attack in (name, name.removesuffix("_optimised"))
    ]
    assert moved[0] > 1.2 * moved[1] > 0


def initial(job: Job) -> torch.nn.Module:
    return build.Built(job).model


def test_label_flip_is_the_honest_reply_for_wrong_labels(make_job: Make) -> None:
    """Twin: a data set whose labels are C - 1 - y."""
    job = make_job(*SMALL, "scheme={name: cyclic, adversaries: 1}", "attack=label_flip")
    split = data.load("synthetic", Path(job.data.root), "train")
    flipped = Images(split._replace(labels=torch.tensor([split.info.classes - 1 - y for y in split.labels.tolist()])))
    rank = adversary.byzantine(job, 1)[0]
    model = torch.cat([p.detach().flatten() for p in initial(job).parameters()])
    replies = []
    for which, attack in ((Images(split), job), (flipped, make_job(*SMALL, "scheme={name: cyclic, adversaries: 1}"))):
        built = build.Built(attack)
        built.train = which
        worker = simulated_workers(built)[rank - 1]
        frame = torch.zeros(worker.wire.frame_bytes, dtype=torch.uint8)
        length = worker.reply(Task(1, 3), model, frame)
        replies.append(frame[64:length].view(torch.float32).clone())
    assert distance(replies[0], replies[1]) < 1e-6
    assert math.isfinite(float(replies[0].norm()))


# --- Byzantine workers who are not heard -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "absent"),
    [
        ("{name: silent, from_step: 2}", True),
        ("{name: slow, from_step: 2, delay_s: 3.0}", True),
        ("{name: slow, from_step: 2, delay_s: 1.0}", False),
    ],
)
def test_a_worker_that_is_not_heard_in_time_is_absent_and_no_suspect(
    make_job: Make, train, honest, attack: str, absent: bool
) -> None:
    job = make_job(*CODES["repetition"], "patience_s=2.0", f"attack={attack}")
    trained = train(job)
    assert torch.equal(trained.model, honest("repetition"))
    (rank,) = byzantine_of(job, 2)
    assert [(e["straggling"], e["suspects"]) for e in steps_of(trained.run)] == [([], []), ([rank] * absent, [])]


def test_half_a_frame_is_refused_and_its_sender_named(make_job: Make, train) -> None:
    job = make_job(*CODES["repetition"], "attack=wrong_size")
    for step in steps_of(train(job).run):
        (rank,) = byzantine_of(job, step["step"])
        assert list(step["refused"]) == [str(rank)]
        assert "payload has" in step["refused"][str(rank)]
