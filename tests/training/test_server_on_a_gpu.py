"""Whole trainings whose server decodes, aggregates and steps on a GPU: they have the bits of one on the CPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from draco.errors import MissingError, TrainingError
from draco.job import Job, to_yaml
from draco.models.flat import flatten
from draco.runs import directory as run_directory
from draco.runs import events
from draco.training import checkpoint, collect, device, evaluate, room
from draco.training.build import Built
from draco.training.state import Training
from draco.training.transport import Task
from draco.training.wire import HEADER

Make = Callable[..., Job]
ON = "server_device=cuda"
SMALL = ("steps=2",)
JOBS = {
    "uncoded, krum": ["scheme={name: uncoded, adversaries: 1}", "aggregator=krum", "attack=alie"],
    "repetition": ["scheme={name: repetition, adversaries: 1}", "attack=reverse_gradient", "clip_norm=0.5", "ema=0.9"],
    "repetition, tolerance": ["scheme={name: repetition, adversaries: 1, vote: tolerance}", "attack=constant"],
    "repetition, digest": ["scheme={name: repetition, adversaries: 1, uplink: digest}", "attack=reverse_gradient"],
    "cyclic": ["scheme={name: cyclic, adversaries: 1}", "attack=random", "optimizer={name: adam}"],
    "cyclic_dft": ["scheme={name: cyclic_dft, adversaries: 1}", "attack=reverse_gradient"],
    "solon": ["scheme={name: solon, adversaries: 1}", "attack=reverse_gradient"],
    "detox": ["workers=9", "batch_size=18", "scheme={name: detox, adversaries: 1}", "aggregator=median"],
    "placement": [
        "workers=12", "batch_size=48", "scheme={name: placement, adversaries: 2}", "aggregator=median", "attack=random",
    ],
    "approximate": ["scheme={name: approximate, stragglers: 1}"],
    "election": ["scheme={name: election, adversaries: 1}", "optimizer.lr=0.001", "attack=sign_flip"],
    "reactive": ["scheme={name: reactive, adversaries: 1}", "attack=reverse_gradient"],
    "verified": ["scheme={name: verified, adversaries: 1}", "attack=reverse_gradient"],
    "worker momentum": [
        "scheme={name: uncoded, adversaries: 1}", "local={momentum: 0.9}", "aggregator=trimmed_mean", "attack=mimic",
    ],
    "centered clipping": [
        "aggregator={name: centered_clipping, tau: 0.5, iterations: 2, pre: [{name: bucketing, size: 2}, nnm]}",
    ],
    "layer by layer": ["scheme={name: uncoded, adversaries: 1}", "aggregator={name: krum, per_layer: true}"],
    "float16": ["scheme={name: repetition, adversaries: 1}", "wire=float16", "attack=reverse_gradient"],
    "bfloat16, blosc2": ["wire={dtype: bfloat16, compression: blosc2}"],
    "batch norm": ["workers=3", "batch_size=6", "model=resnet18", "steps=1"],
    "chain": ["scheme={name: repetition, adversaries: 1}", "chain=partitions", "eval_every=2"],
}  # fmt: skip


def told(run: Path) -> list[tuple[object, ...]]:
    """Return what the events say of each step."""
    found = (event for event in events.read(run / "events.jsonl") if event["event"] == "step")
    return [(e["step"], e["loss"], e["suspects"], e.get("gradient_norm"), e["refused"]) for e in found]


ROUNDED = ("centered clipping",)  # whose sums are taken in wider blocks on a GPU


@pytest.mark.parametrize("name", JOBS)
def test_a_training_is_the_one_on_the_cpu(gpu: torch.device, make_job: Make, train, name: str) -> None:
    here, there = (train(make_job(*SMALL, *JOBS[name], *more)) for more in ([], [ON]))
    assert there.status.state == "succeeded"
    if gpu.type != "cuda" and name not in ROUNDED:
        assert torch.equal(there.model, here.model)
        assert told(there.run) == told(here.run)
        ours, theirs = ((run / "evaluations.jsonl").exists() for run in (here.run, there.run))
        assert ours == theirs
    else:
        torch.testing.assert_close(there.model, here.model, rtol=1e-2, atol=1e-3)
    start = next(e for e in events.read(there.run / "events.jsonl") if e["event"] == "start")
    assert start["server_device"] == device.of_gpus().get_device_name()
    contents = checkpoint.load(checkpoint.newest(there.run / "checkpoints"))
    assert contents["optimizer"]["state"][0]


def test_a_chain_has_the_digests_of_what_is_on_the_gpu(gpu: torch.device, make_job: Make, train) -> None:
    if gpu.type == "cuda":
        pytest.skip("a GPU has other bits")
    both = [train(make_job(*SMALL, *JOBS["chain"], *more)) for more in ([], [ON])]
    lines = [[json.loads(line) for line in (each.run / "chain.jsonl").read_text().splitlines()] for each in both]
    steps = [
        [(e["before"], e["after"], e["vector"], e["partitions"]) for e in each if e["line"] == "step"] for each in lines
    ]
    assert len(steps[0]) == 2
    assert steps[0] == steps[1]


@pytest.mark.parametrize("order", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_another_device_and_says_so(gpu: torch.device, make_job: Make, train, order: Any) -> None:
    options = (*SMALL, "scheme={name: repetition, adversaries: 1}", "optimizer={name: adam}", "ema=0.9", "steps=4")
    job = make_job(*options)
    first, second = (job.model_copy(update={"server_device": each}) for each in order)
    run: list[Path] = []

    def stopping(worker: Any) -> Any:
        def reply(task: Task, model: torch.Tensor, frame: torch.Tensor) -> int | None:
            if task.step == 2:
                (run[0] / "stop").touch()
            return worker.reply(task, model, frame)

        return reply

    run.append(run_directory.create(Path(job.data.root).parent / "crossed", job.name, to_yaml(job)))
    (run[0] / "secret").write_bytes(b"11" * 32)
    assert train(first, run[0], replace={1: stopping}).status.state == "interrupted"
    done = train(second, run[0])
    assert done.status.state == "succeeded"
    if gpu.type != "cuda":
        assert torch.equal(done.model, train(job).model)
    names = {"cuda": device.of_gpus().get_device_name(), "cpu": "cpu"}
    found = [*events.read(run[0] / "events.jsonl")]
    assert [e["server_device"] for e in found if e["event"] == "start"] == [names[each] for each in order]
    (resumed,) = (e for e in found if e["event"] == "resume")
    assert resumed["before_on"] == names[order[0]]


def test_a_step_that_is_taken_back_is_taken_back_on_the_gpu(gpu: torch.device, make_job: Make) -> None:
    options = ("scheme={name: uncoded, adversaries: 1}", "optimizer={name: adam}", "ema=0.9", "local={momentum: 0.5}")
    training = Training(Built(make_job(*SMALL, *options, ON)))
    source = torch.Generator().manual_seed(1)
    vectors = torch.randn(3, training.elements, generator=source).to(gpu)
    training.update(vectors[0])
    before, sent = training.snapshot(), training.sent.clone()
    training.update(vectors[1])
    assert not torch.equal(training.sent, sent)
    once = training.contents()
    training.back(before)
    assert torch.equal(training.sent, sent)
    assert torch.equal(training.flat.cpu(), sent)
    training.update(vectors[1])
    assert equal(training.contents(), once)


def equal(a: Any, b: Any) -> bool:
    """Say whether two contents of checkpoints are the same, and tensors of the CPU."""
    if isinstance(a, torch.Tensor):
        return a.is_cpu and b.is_cpu and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return bool(a == b)


def test_what_is_not_finite_is_refused_and_never_read(gpu: torch.device, make_job: Make, train) -> None:
    def poisoned(worker: Any) -> Any:
        def reply(task: Task, model: torch.Tensor, frame: torch.Tensor) -> int | None:
            length = worker.reply(task, model, frame)
            frame[HEADER.size + 4 : HEADER.size + 8].view(torch.float32).fill_(float("nan"))
            return length

        return reply

    job = make_job(*SMALL, "scheme={name: cyclic, adversaries: 1}")
    on_gpu = job.model_copy(update={"server_device": "cuda"})
    here, there = (train(each, replace={2: poisoned}) for each in (job, on_gpu))
    assert [refused for *_, refused in told(there.run)] == [{"2": collect.NOT_FINITE}] * 2
    if gpu.type != "cuda":
        assert torch.equal(there.model, here.model)


def test_tied_weights_stay_tied(gpu: torch.device) -> None:
    inner = torch.nn.Linear(3, 3)
    model = torch.nn.Sequential(inner, torch.nn.Linear(3, 3))
    model[1].weight = inner.weight
    flat = flatten(model.to(gpu))
    assert flat.numel() == 9 + 3 + 3
    flat.zero_()
    assert not model[1].weight.any()


# --- Room ------------------------------------------------------------------------------------------------------------


def test_a_gpu_that_is_too_small_is_refused_before_the_first_step(
    gpu: torch.device, make_job: Make, train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.of_gpus(), "mem_get_info", lambda device=None: (1 << 20, 1 << 34))
    with pytest.raises(MissingError, match=r"the server needs .* there .* and 1\.0 MB is free.*server_device=cpu"):
        train(make_job(*SMALL, ON))


def test_room_counts_what_the_server_keeps(gpu: torch.device, make_job: Make) -> None:
    def need(*options: str) -> int:
        return room.on_gpu(Built(make_job(*SMALL, "optimizer={name: sgd, momentum: 0.0}", *options, ON)))["in all"]

    plain = need("workers=5")
    p = Built(make_job(*SMALL)).elements - 1
    assert need("workers=6", "batch_size=18") - plain == pytest.approx(4 * p, abs=64)
    assert need("optimizer={name: adam}") - plain == 2 * 4 * p
    assert need("ema=0.9") - plain == 4 * p
    assert need("local={momentum: 0.5}") - plain == 5 * 4 * p
    bare = need("workers=5", "scheme=uncoded", "attack=none")
    by_weights = need("workers=5", "scheme=uncoded", "attack=none", "aggregator={name: krum, f: 1, pre: [nnm]}")
    assert by_weights == bare, "no row is made"
    clipped = need("workers=5", "scheme=uncoded", "attack=none", "aggregator={name: krum, f: 1, pre: [arc]}")
    assert clipped - bare == 5 * 4 * p
    grouped = need("workers=5", "scheme=uncoded", "attack=none", "aggregator={name: median_of_means, f: 1}")
    assert grouped - bare == 3 * 4 * p


def test_an_evaluation_that_fills_the_gpu_says_what_to_do(
    gpu: torch.device, make_job: Make, train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB. Process 1 has 3 GiB in use.")

    monkeypatch.setattr(evaluate, "evaluate_model", full)
    with pytest.raises(TrainingError, match=r"evaluation after step 2: .* is full .*2\.00 GiB.*eval_batch_size"):
        train(make_job(*SMALL, "eval_every=2", "checkpoint_every=2", ON))


def test_a_gpu_that_runs_full_says_what_to_do(gpu: torch.device, make_job: Make, train) -> None:
    def full(worker: Any) -> Any:
        def reply(task: Task, model: torch.Tensor, frame: torch.Tensor) -> int | None:
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB. Process 1 has 3 GiB in use.")

        return reply

    with pytest.raises(TrainingError, match=r"step 1: .* is full .*Tried to allocate 2\.00 GiB.*server_device=cpu"):
        train(make_job(*SMALL, ON), replace={1: full})
