"""Training with Draco is training: one worker without a code does what a written-out loop of plain PyTorch does."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from draco import data, files
from draco.data import batches
from draco.job import Job, to_yaml, warnings
from draco.runs import directory as run_directory
from draco.runs import events
from draco.sampling import batch_indices
from draco.training import build, checkpoint, evaluate
from draco.training.build import Built

Make = Callable[..., Job]
STEPS, WARMUP, LR, CLIP, EMA = 8, 3, 0.01, 0.5, 0.6
ONE = (
    "workers=1", "model=fc", f"steps={STEPS}", "eval_every=4",
    f"optimizer={{name: adamw, lr: {LR}, weight_decay: 0.1}}",
    f"schedule={{name: cosine, warmup_steps: {WARMUP}}}", f"clip_norm={CLIP}", f"ema={EMA}",
)  # fmt: skip


def rate(step: int) -> float:
    """Return the learning rate of a step, from 1: half a cosine after a rise that begins above 0."""
    if step <= WARMUP:
        return LR * step / (WARMUP + 1)
    return LR * 0.5 * (1 + math.cos(math.pi * (step - 1 - WARMUP) / (STEPS - WARMUP)))


class Plain:
    """What a plain loop ends with."""

    def __init__(self, job: Job) -> None:
        split = data.load("synthetic", Path(job.data.root), "train")
        self.model = Built(job).model
        self.average = AveragedModel(copy.deepcopy(self.model), multi_avg_fn=get_ema_multi_avg_fn(EMA))
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=0.1)
        self.norms, self.losses = [], []
        for step in range(1, STEPS + 1):
            images, labels = batches.batch(
                split, batch_indices(job.seed, step, job.batch_size, len(split.labels)), None
            )
            optimizer.param_groups[0]["lr"] = rate(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(self.model(images), labels)
            loss.backward()
            self.norms.append(nn.utils.clip_grad_norm_(self.model.parameters(), CLIP).item())
            self.losses.append(loss.item())
            optimizer.step()
            self.average.update_parameters(self.model)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_clipping_average_adamw_and_cosine_do_what_a_plain_loop_does(make_job: Make, train) -> None:
    job = make_job(*ONE)
    plain, trained = Plain(job), train(job)
    steps = [e for e in events.read(trained.run / "events.jsonl") if e["event"] == "step"]
    assert [e["lr"] for e in steps] == pytest.approx([rate(step) for step in range(1, STEPS + 1)], rel=1e-9)
    assert [e["loss"] for e in steps] == pytest.approx(plain.losses, rel=1e-4)
    assert [e["gradient_norm"] for e in steps] == pytest.approx(plain.norms, rel=1e-4)
    assert max(plain.norms) > CLIP  # it did something
    path = checkpoint.newest(trained.run / "checkpoints")
    assert path is not None
    contents = checkpoint.load(path)
    last = torch.cat([value.flatten() for value in contents["model"].values()])
    assert float((last - flat(plain.model)).norm() / flat(plain.model).norm()) < 1e-5
    average = flat(plain.average.module)
    assert float((contents["average"] - average).norm() / average.norm()) < 1e-5
    assert float((last - average).norm() / average.norm()) > 1e-3  # they differ
    built = Built(job)
    expected = evaluate.evaluate_model(built.task, plain.average.module, built.test, 1000)
    assert evaluate.evaluations(trained.run)[STEPS].metrics == pytest.approx(expected.metrics, rel=1e-4)


def test_the_schedule_is_that_of_transformers_but_for_a_rise_that_begins_above_zero(make_job: Make) -> None:
    """With its formula: lr W-step rise t / W, then 0.5 (1 + cos(pi (t - W) / (T - W))), t counted from 0."""

    def theirs(t: int) -> float:
        if t < WARMUP:
            return LR * t / WARMUP
        return LR * max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * (t - WARMUP) / max(1, STEPS - WARMUP))))

    job = make_job(*ONE)
    vector = nn.Parameter(torch.zeros(2))
    optimizer = build.build_optimizer(job, vector)
    schedule = build.build_schedule(job, optimizer, STEPS)
    ours = []
    for _ in range(STEPS):
        ours.append(schedule.get_last_lr()[0])
        vector.grad = torch.zeros(2)
        optimizer.step()
        schedule.step()
    assert ours[WARMUP:] == pytest.approx([theirs(t) for t in range(WARMUP, STEPS)], rel=1e-9)
    assert ours[:WARMUP] == pytest.approx([LR * (t + 1) / (WARMUP + 1) for t in range(WARMUP)], rel=1e-9)
    assert theirs(0) == 0 < ours[0]


def test_an_average_resumes_to_the_bit(make_job: Make, train) -> None:
    job = make_job(*ONE)
    whole = train(job)
    partial = run_directory.create(whole.run.parent, "partial", to_yaml(job))
    files.replace(partial / "secret", (whole.run / "secret").read_bytes())

    def stopping(w):
        def reply(task, model, frame):
            if task.step == 3:
                (partial / "stop").touch()
            return w.reply(task, model, frame)

        return reply

    assert train(job, partial, {1: stopping}).status.step == 3
    resumed = train(job, partial)
    ends = [checkpoint.load(checkpoint.newest(r.run / "checkpoints")) for r in (whole, resumed)]
    assert torch.equal(ends[0]["average"], ends[1]["average"])
    assert torch.equal(whole.model, resumed.model)


def test_no_average_and_no_clipping_leave_the_bits(make_job: Make, train) -> None:
    plain = train(make_job("steps=2"))
    huge = train(make_job("steps=2", "clip_norm=1e9", "ema=0.5"))
    assert torch.equal(plain.model, huge.model)


def test_a_rule_that_remembers_sees_the_gradient_before_it_is_clipped(make_job: Make, train) -> None:
    clipping = "aggregator={name: centered_clipping, tau: 100.0}"
    trained = train(make_job("steps=1", "clip_norm=0.001", clipping))
    contents = checkpoint.load(checkpoint.newest(trained.run / "checkpoints"))
    assert float(contents["centre"].norm()) > 0.01


@pytest.mark.parametrize(("overrides", "warned"), [(["ema=0.9", "steps=5"], True), (["ema=0.9", "steps=500"], False)])
def test_an_average_over_more_steps_than_there_are_is_warned_of(make_job: Make, overrides, warned: bool) -> None:
    assert any("ema" in warning for warning in warnings(make_job(*overrides))) == warned
