"""Workers on a GPU: what they send has the bits of the CPU's where the device computes as the CPU does."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import Trained
from real_model import Regression, vector, vectors
from torch import Tensor

from draco.determinism import fingerprint
from draco.errors import MissingError, OwnCodeError
from draco.job import Job
from draco.tasks.first_check import Setting, look
from draco.training import copies, device, greeting, process, repeatable, server, staging, task_check
from draco.training.build import ON_GPUS, TIES, Built, tolerance
from draco.training.greeting import Greeting
from draco.training.transport import Task
from draco.training.verify import verifying

Make = Callable[..., Job]
Train = Callable[..., Trained]
SMALL = ("model=fc", "steps=2", "server_device=cpu")
ATTACKED = ("scheme.adversaries=1", "attack=reverse_gradient")
FIXED = ("scheme.adversaries=1", "attack={name: reverse_gradient, ranks: [2]}")


def close(gpu: torch.device, there: Tensor, here: Tensor, within: float = 1e-3, *, bits: bool = True) -> None:
    """Compare vectors: by their bits where the device poses, as it computes what the CPU computes, if `bits`."""
    assert there.is_cpu
    if gpu.type == "cuda" or not bits:
        assert float((there.double() - here.double()).norm() / here.double().norm()) < within
    else:
        assert torch.equal(there, here)


# Whole trainings


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["scheme=cyclic", *ATTACKED, "wire.dtype=bfloat16"], id="cyclic, fused, bfloat16"),
        pytest.param(["scheme={name: cyclic, encoding: explicit}", *ATTACKED], id="cyclic, explicit"),
        pytest.param(["scheme=cyclic_dft", *ATTACKED], id="cyclic_dft"),
        pytest.param(["scheme=solon", *ATTACKED, "wire.compression=blosc2"], id="solon, blosc2"),
        pytest.param(["scheme=election", *ATTACKED, "optimizer={name: sgd, lr: 0.001}"], id="election"),
        pytest.param(
            ["scheme=repetition", "scheme.adversaries=1", "attack=label_flip", "precision=float64_rounded"],
            id="repetition, label_flip, float64_rounded",
        ),
        pytest.param(
            ["aggregator=median", "attack=alie", "attack.adversaries=1", "local={momentum: 0.9, clip: 1.0}"],
            id="alie, momentum, clipped",
        ),
        pytest.param(["scheme=reactive", *FIXED], id="reactive"),
        pytest.param(["scheme=verified", *FIXED, "micro_batch=2"], id="verified, micro-batches"),
        pytest.param(
            ["scheme={name: repetition, uplink: digest, vote: tolerance}", *ATTACKED, "wire.dtype=bfloat16"],
            id="digests and sketches, bfloat16",
        ),
    ],
)
def test_a_run_on_gpus_has_the_model_of_one_on_cpus(
    gpu: torch.device, make_job: Make, train: Train, words: list[str]
) -> None:
    before = repeatable._settings()
    there = train(make_job(*SMALL, *words, "device=cuda"))
    assert there.status.state == "succeeded", there.status
    assert repeatable._settings() == before, "settings are put back"
    here = train(make_job(*SMALL, *words))
    if "scheme=solon" in words:  # the posing device lays out rows otherwise, and a product with them rounds otherwise
        close(gpu, there.model, here.model, within=1e-5 if gpu.type != "cuda" else 1e-3, bits=False)
    else:
        close(gpu, there.model, here.model)


# Vectors


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        pytest.param(True, {}, id="BatchNorm and dropout"),
        pytest.param(True, {"micro_batch": 4, "precision": "float64_rounded"}, id="pieces, rounded"),
        pytest.param(False, {}, id="dropout, weighted too"),
    ],
)
def test_a_vector_is_that_of_the_cpu(gpu: torch.device, norm: bool, options: dict[str, Any]) -> None:
    task = Regression(norm=norm, p=0.3)
    there, here = vectors(task, where=gpu, **options), vectors(task, **options)
    parameters = torch.linspace(-1, 1, here.parameters)
    for each in (there, here):
        each.load(2, parameters)
    close(gpu, vector(there, step=2), vector(here, step=2))
    if not norm:
        sums = [torch.zeros(here.elements, device=each.device) for each in (there, here)]
        for each, out in zip((there, here), sums, strict=True):
            each.weighted(2, [0, 1], [0.25, -2.0], out)
        close(gpu, sums[0].cpu(), sums[1])


def test_autocast_is_of_the_device(gpu: torch.device) -> None:
    there = vector(vectors(Regression(), where=gpu, autocast=("bfloat16",)))
    here = vector(vectors(Regression()))
    assert there.isfinite().all()
    assert (there - here).norm() < 0.05 * here.norm()


def test_formats_change_on_the_device(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = Tensor.to

    def watched(tensor: Tensor, *given: Any, **named: Any) -> Tensor:
        if any(isinstance(each, torch.dtype) for each in given):
            seen.append(tensor.device.type)
        return real(tensor, *given, **named)

    monkeypatch.setattr(copies, "CHUNK", 3)
    values = torch.linspace(-2, 2, 11)
    there = values.to(gpu)
    monkeypatch.setattr(Tensor, "to", watched)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        out = torch.zeros(11, dtype=dtype)
        copies.to_host(there, out)
        assert torch.equal(out.float(), values.type(dtype).float())
    wide = torch.zeros(11, dtype=torch.float64, device=gpu)
    copies.to_device(values, wide)
    assert wide.tolist() == values.tolist()
    assert {*seen} == {gpu.type}


# A process of its own


class Server:
    """The server's side of one worker: it overwrites the model with each task's, as a transport does."""

    whole = True

    def __init__(self, models: list[Tensor], momentum: Tensor | None = None) -> None:
        self.models, self.momentum = models, momentum
        self.said: list[bytes] = []
        self.frames: list[Tensor] = []

    def job(self) -> str:
        raise AssertionError

    def greet(self, said: bytes) -> None:
        self.said.append(said)

    def take_momenta(self, out: Tensor) -> None:
        assert self.momentum is not None
        out.copy_(self.momentum)

    def tasks(self, model: Tensor) -> Iterator[Task]:
        for step, given in enumerate(self.models, start=1):
            model.copy_(given)
            yield Task(step, 1)
            model.fill_(torch.nan)

    def reply(self, frame: Tensor, length: int) -> None:
        self.frames.append(frame[64:length].clone())


@pytest.mark.parametrize(
    "words",
    [
        ["wire.dtype=bfloat16"],
        ["local={momentum: 0.5}"],
        ["attack={name: alie, ranks: [2]}", "aggregator=median"],
        ["attack={name: constant, ranks: [2]}", "aggregator=median"],  # which needs nothing of the device
    ],
)
def test_a_worker_reads_each_model_before_the_next_comes(gpu: torch.device, make_job: Make, words: list[str]) -> None:
    def sent(*more: str) -> list[Tensor]:
        built = Built(make_job("model=fc", *words, *more))
        size = built.elements - built.tail
        models = [torch.randn(size, generator=torch.Generator().manual_seed(seed)) / 20 for seed in range(3)]
        side = Server(models, torch.ones(1, size))
        with repeatable.settled(built.job, device.of_worker(built.job)):
            process.serve(built, 2, side)
        said = greeting.read(side.said[0])
        assert said is not None
        assert not said.fault
        dtype = torch.bfloat16 if "wire.dtype=bfloat16" in words else torch.float32
        return [frame.view(dtype).float() for frame in side.frames]

    there, here = sent("device=cuda"), sent()
    assert len(there) == len(here) == 3
    for one, other in zip(there, here, strict=True):
        assert one.isfinite().all()
        close(gpu, one, other, within=1e-2)


def test_a_worker_whose_buffers_cannot_be_locked_says_so(
    gpu: torch.device, make_job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(count: int, size: int) -> Tensor:
        raise MissingError("no memory can be locked")

    monkeypatch.setattr(staging, "pinned", refuse)
    side = Server([])
    with pytest.raises(MissingError, match="can be locked"):
        process.serve(Built(make_job("model=fc", "device=cuda")), 2, side)
    assert greeting.read(side.said[0]) == Greeting(fault="no memory can be locked")


# Determinism


def test_what_a_gpu_needs_to_repeat_its_bits_is_set_and_put_back(gpu: torch.device, make_job: Make) -> None:
    before = repeatable._settings()
    with repeatable.settled(make_job("device=cuda", "tf32=true"), gpu):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
        with repeatable.settled(make_job("device=cuda", "deterministic=false"), gpu):
            assert not torch.are_deterministic_algorithms_enabled()
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    assert repeatable._settings() == before
    with repeatable.settled(make_job(), torch.device("cpu")):
        assert repeatable._settings() == before


def test_cublas_that_has_begun_otherwise_is_told_of(
    gpu: torch.device, make_job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.of_gpus(), "is_initialized", lambda: True)
    monkeypatch.delenv(repeatable.WORKSPACE)
    with pytest.raises(MissingError, match="CUBLAS_WORKSPACE_CONFIG is not set"):
        repeatable.settle(make_job("device=cuda"), gpu)
    monkeypatch.setattr(device.of_gpus(), "is_initialized", lambda: False)
    with repeatable.settled(make_job("device=cuda"), gpu):
        assert fingerprint(gpu)["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


class Putting(Regression):
    """Its loss has an operation that does not repeat its bits where an index comes twice."""

    def loss(self, model: torch.nn.Module, batch: Any) -> Tensor:
        losses = super().loss(model, batch)
        return losses.put(torch.zeros(1, dtype=torch.long, device=losses.device), losses[:1])


def test_an_operation_that_cannot_repeat_its_bits_is_named(gpu: torch.device, make_job: Make) -> None:
    with (
        repeatable.settled(make_job("device=cuda"), gpu),
        pytest.raises(OwnCodeError, match=r"Putting.loss\(\), .*put_ has no form .* deterministic: false"),
    ):
        vector(vectors(Putting(), where=gpu))
    with repeatable.settled(make_job("device=cuda", "deterministic=false"), gpu):
        assert vector(vectors(Putting(), where=gpu)).isfinite().all()


def test_the_first_check_computes_on_the_gpu_where_there_is_one(
    gpu: torch.device, make_job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("device=cuda")
    setting = Setting("my.py:Mine", seed=3, batch_size=12, partitions=3, device=str(task_check._device(job)))
    assert torch.device(setting.device) == gpu
    with repeatable.settled(job, gpu):
        assert look(Regression(norm=True, p=0.3), setting).faults == []
        (fault,) = look(Putting(), setting).faults
    assert "put_ has no form that repeats its bits on this device; take another operation, or determ" in fault
    monkeypatch.setattr(device, "gpus", lambda: 0)
    assert task_check._device(job).type == "cpu", "a server's machine need not have one"


# Platforms


def of_gpu(gpu: torch.device, **other: str) -> Greeting:
    facts = {**fingerprint(gpu), "device": "NVIDIA A10G", **other}
    return Greeting(json.dumps(facts))


def test_a_greeting_names_the_gpu_and_has_room(gpu: torch.device, make_job: Make) -> None:
    said = greeting.platform_of(make_job("device=cuda"))
    facts = json.loads(said)
    assert facts["device"] == device.of_gpus().get_device_name(gpu)
    assert {"capability", "driver", "CUDA", "cuDNN", "TF32 in cuDNN", "deterministic algorithms", "results"} <= {*facts}
    facts |= {"device": "NVIDIA GeForce RTX 4090 Laptop GPU with a longer name", "torch": "2.13.0a0+git0123456789"}
    longest = Greeting(json.dumps(facts, sort_keys=True, separators=(",", ":")), sees="0" * 120)
    assert len(greeting.write(longest)) <= 1024
    assert greeting.read(greeting.write(longest)) == longest, "and nothing of it is cut"


def test_unlike_gpus_vote_within_a_tolerance_for_a_reason_that_a_person_can_read(
    gpu: torch.device, make_job: Make
) -> None:
    job = make_job("scheme=repetition", "scheme.adversaries=1", "device=cuda", "workers=3")
    alike, other = of_gpu(gpu), of_gpu(gpu, device="Tesla T4", capability="7.5")
    assert server.choose_vote(job, [alike, alike, alike])[0] == "exact"
    vote, why = server.choose_vote(job, [alike, other, alike])
    assert vote == "tolerance"
    assert "device: NVIDIA A10G on workers 1, 3, Tesla T4 on worker 2" in why
    assert "results" not in why
    assert tolerance(job) == ON_GPUS
    assert tolerance(job.model_copy(update={"precision": "float64_rounded"})) == TIES
    assert tolerance(job.model_copy(update={"device": "cpu"})) < 1e-5
    loose = job.model_copy(update={"deterministic": False})
    assert server.choose_vote(loose, [alike, alike, alike]) == (
        "tolerance", "GPUs need not repeat their bits (deterministic: false)"
    )  # fmt: skip


def test_a_run_on_gpus_is_verified_on_one_and_on_a_cpu(
    gpu: torch.device, make_job: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(*SMALL, "device=cuda", "scheme=repetition", *ATTACKED, "checkpoint_every=1", "checkpoint_keep=all")
    run, told = train(job).run, list[str]()

    def verdict(used: Job) -> verifying.Verdict:
        built = verifying.built(used, used, record := verifying.read_record(run))
        with repeatable.settled(used, *process.used_here(used)):
            return verifying.verify(run, built, record, share=1.0, seed=1, tell=told.append)

    found = verdict(job)
    assert (found.wrong, found.exact) == ("", True), told
    on_cpu = verdict(job.model_copy(update={"device": "cpu"}))
    assert on_cpu.wrong == ""
    name = device.of_gpus().get_device_name(gpu)
    assert any(f"the run was on {name}, this is cpu" in line for line in told)
