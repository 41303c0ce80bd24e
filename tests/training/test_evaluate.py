"""The evaluator: right figures, nothing twice, an end."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from draco.cli.main import main
from draco.data import batches
from draco.job import Job
from draco.models.flat import flatten
from draco.runs import directory as run_directory
from draco.tasks.images import Images
from draco.training import build, checkpoint, evaluate

Make = Callable[..., Job]


def test_figures_are_those_of_a_slow_loop(make_job: Make) -> None:
    job = make_job("model=fc")
    built = build.Built(job)
    split, model = built.test.split, built.model
    result = evaluate.evaluate_model(built.task, model, built.test, batch_size=100)
    top1 = top5 = 0
    loss = 0.0
    for i in range(len(split.labels)):
        x, y = batches.batch(split, torch.tensor([i]), None)
        scores = model(x)[0].detach()
        order = scores.argsort(descending=True)
        top1 += int(order[0] == y[0])
        top5 += int(y[0] in order[:5])
        loss -= float(scores.log_softmax(0)[y[0]])
    n = len(split.labels)
    assert (result.metrics["top1"], result.metrics["top5"], result.samples) == (top1 / n, top5 / n, n)
    assert result.metrics["loss"] == pytest.approx(loss / n, rel=1e-4)


def test_batch_norm_is_evaluated_with_running_statistics_and_left_training(make_job: Make) -> None:
    job = make_job("model=resnet18", "batch_size=10")
    built = build.Built(job)
    split, model = built.test.split, built.model
    small = Images(split._replace(images=split.images[:20], labels=split.labels[:20]))
    before = torch.cat([b.flatten().double() for b in model.buffers()])
    one, all_ = (evaluate.evaluate_model(built.task, model, small, batch_size=b) for b in (1, 20))
    assert one.metrics["loss"] == pytest.approx(all_.metrics["loss"], rel=1e-4)
    assert model.training
    assert torch.equal(before, torch.cat([b.flatten().double() for b in model.buffers()]))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_evaluation_leaves_the_parameters_in_the_flat_vector(make_job: Make, device: str) -> None:
    job = make_job("model=fc")
    built = build.Built(job)
    model = built.model
    flat = flatten(model)
    evaluate.evaluate_model(built.task, model, built.test, batch_size=512, on=device)
    flat.zero_()
    assert all(not p.any() for p in model.parameters())


@pytest.fixture
def finished(make_job: Make, train):
    return train(make_job("steps=3", "checkpoint_every=1"))


def steps_of(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "evaluations.jsonl").read_text().splitlines()]


def test_every_checkpoint_is_evaluated_once(finished, make_job: Make) -> None:
    job = make_job("steps=3", "checkpoint_every=1")
    first = list(evaluate.evaluate_run(finished.run, build.Built(job), follow=False, batch_size=512))
    assert [step for step, _ in first] == [1, 2, 3]
    assert list(evaluate.evaluate_run(finished.run, build.Built(job), follow=True)) == []
    assert steps_of(finished.run) == [1, 2, 3]


def test_a_checkpoint_that_cannot_be_used_is_told_of_once_and_the_others_are_evaluated(
    finished, make_job: Make
) -> None:
    job = make_job("steps=3", "checkpoint_every=1")
    folder = finished.run / "checkpoints"
    good = (folder / "step-00000002.pt").read_bytes()
    (folder / "step-00000002.pt").write_bytes(good[:-1])
    foreign = checkpoint.load(folder / "step-00000003.pt")
    foreign["job"]["seed"] += 1
    (folder / "step-00000003.json").unlink()
    checkpoint.save(folder, 3, foreign)
    said: list[tuple[int, str]] = []

    def look() -> list[int]:
        found = evaluate.evaluate_run(
            finished.run, build.Built(job), follow=False, batch_size=512, refuse=lambda *refusal: said.append(refusal)
        )
        return [step for step, _ in found]

    assert look() == [1]
    assert [step for step, _ in said] == [2, 3]
    assert "its manifest says" in said[0][1]
    assert "another job: seed is 8, not 7" in said[1][1]
    (folder / "step-00000002.pt").write_bytes(good)
    assert look() == [2]
    assert steps_of(finished.run) == [1, 2]


def test_what_the_server_writes_in_the_place_of_a_refused_checkpoint_is_evaluated(
    finished, make_job: Make, monkeypatch
) -> None:
    """Beside training: the evaluator meets a bad one, the server sets it aside and writes it anew."""
    job = make_job("steps=3", "checkpoint_every=1")
    folder = finished.run / "checkpoints"
    contents = checkpoint.load(folder / "step-00000003.pt")
    (folder / "step-00000003.pt").write_bytes(b"garbage")
    run_directory.write_status(finished.run, "running", 2)
    naps: list[float] = []
    sleep = time.sleep

    def nap(seconds: float) -> None:
        if threading.current_thread() is not threading.main_thread():
            sleep(seconds)  # of a thread that another test has left
            return
        naps.append(seconds)
        if len(naps) == 2:
            checkpoint.save(folder, 3, contents)
            run_directory.write_status(finished.run, "succeeded", 3)

    monkeypatch.setattr(evaluate.time, "sleep", nap)
    said: list[int] = []
    found = evaluate.evaluate_run(
        finished.run, build.Built(job), follow=True, batch_size=1024, refuse=lambda step, why: said.append(step)
    )
    assert [step for step, _ in found] == [1, 2, 3]
    assert said == [3]


def test_the_command_says_what_it_could_not_evaluate_and_that_not_all_is_done(finished, capsys) -> None:
    folder = finished.run / "checkpoints"
    (folder / "step-00000003.json").write_text("{}")
    assert main(["eval", str(finished.run), "--here"]) == 7
    printed = capsys.readouterr()
    assert printed.out.count("top-1") == 2
    assert printed.err.startswith(f"not evaluated: {folder}/step-00000003.pt: its manifest must hold")
    assert printed.err.count("\n") == 1


def test_an_evaluation_that_half_fitted_on_the_disk_spoils_only_itself(tmp_path: Path) -> None:
    (tmp_path / "evaluations.jsonl").write_text(
        '{"step": 1, "top1": 0.5, "top5": 0.6, "loss": 0.7, "samples": 10}\n{"step": 2, "ti'
    )
    evaluate.append(tmp_path, 3, evaluate.Evaluation({"loss": 0.7}, 10))
    assert evaluate.done_steps(tmp_path) == {1, 3}


def test_following_takes_new_checkpoints_and_ends_with_the_run(finished, make_job: Make, monkeypatch) -> None:
    """Beside training: the last checkpoint appears while the evaluator waits, then the run ends."""
    monkeypatch.setattr(evaluate, "POLL_S", 0.05)
    job = make_job("steps=3", "checkpoint_every=1")
    folder = finished.run / "checkpoints"
    last = checkpoint.newest(folder)
    contents = checkpoint.load(last)
    last.unlink()
    last.with_suffix(".json").unlink()
    run_directory.write_status(finished.run, "running", 2)

    def rest_of_the_training() -> None:
        time.sleep(0.5)
        checkpoint.save(folder, 3, contents)
        run_directory.write_status(finished.run, "succeeded", 3)

    trainer = threading.Thread(target=rest_of_the_training)
    trainer.start()
    seen = [step for step, _ in evaluate.evaluate_run(finished.run, build.Built(job), follow=True, batch_size=1024)]
    trainer.join()
    assert seen == [1, 2, 3]
