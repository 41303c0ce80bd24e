"""Whole gradients: the replay has the worker's bits, and finds one false number in any product."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from draco import models
from draco.models import batch_norm
from draco.models.dropout import SeededDropout, set_dropout
from draco.replay import CheatError, products, record, recording, replay
from draco.tasks import Task
from draco.training.gradients import Plan, StepVectors

TOKENS, WIDTH = 64, 128


@pytest.fixture(autouse=True)
def _products_of_small_models_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LEAST_PER_NUMBER", 10)


class Block(nn.Module):
    """A transformer's block, whose attention is one operation or several."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.drop = SeededDropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).view(*x.shape[:2], 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4)
        if self.fused:
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-1, -2)).mul_(0.125)  # in place, on what a transcript has
            future = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
            attended = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        x = x + self.drop(self.out(attended.transpose(1, 2).reshape(x.shape)))
        return x + self.drop(self.down(F.gelu(self.up(self.norms[1](x)))))


class Gpt(nn.Module):
    """Two blocks between an embedding and a linear layer."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(100, WIDTH)
        self.blocks = nn.Sequential(Block(fused), Block(fused))
        self.last = nn.Linear(WIDTH, 100)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(self.tokens(x)))


class Pictures(nn.Module):
    """Convolutions with BatchNorm, dropout, and a ReLU in place on a convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 48, 3, stride=2, padding=1),
            nn.BatchNorm2d(48),
            nn.ReLU(inplace=True),
            SeededDropout(0.2),
            nn.Conv2d(48, 64, 3, bias=False),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(64 * 36, 64),
            SeededDropout(0.5),
            nn.Linear(64, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Classes(Task):
    """A model, and random inputs with random labels."""

    def __init__(self, build, shape: tuple[int, ...], classes: int = 10) -> None:
        self.build, self.shape, self.classes = build, shape, classes

    def model(self) -> nn.Module:
        torch.manual_seed(4)
        return self.build()

    def samples(self, split: str) -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(8)
        if isinstance(self.shape[-1], int) and len(self.shape) == 1:
            inputs = torch.randint(self.classes, (64, *self.shape), generator=source)
            return inputs, torch.randint(self.classes, (64, *self.shape), generator=source)
        inputs = torch.randn(64, *self.shape, generator=source)
        return inputs, torch.randint(self.classes, (64,), generator=source)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = batch
        outputs = model(inputs)
        losses = F.cross_entropy(outputs.flatten(0, -2), labels.flatten(), reduction="none")
        return losses.view(len(inputs), -1).mean(1)


GPT = Classes(Gpt, (TOKENS,), 100)
TASKS = {
    "lenet": (Classes(partial(models.build_model, "lenet", (1, 28, 28), 10, 7), (1, 28, 28)), 16, None),
    "resnet18": (Classes(partial(models.build_model, "resnet18", (3, 16, 16), 10, 7), (3, 16, 16)), 4, None),
    "gpt": (GPT, 4, None),
    "gpt in micro-batches": (GPT, 8, 2),
    "gpt with attention in one operation": (Classes(partial(Gpt, True), (TOKENS,), 100), 4, None),
    "dropout and BatchNorm": (Classes(Pictures, (3, 16, 16)), 12, None),
    "dropout and BatchNorm in micro-batches": (Classes(Pictures, (3, 16, 16)), 24, 6),
}
each_task = pytest.mark.parametrize("name", TASKS)


def vectors(name: str) -> StepVectors:
    """Return what a worker, or the checker, computes step vectors with."""
    task, batch, micro = TASKS[name]
    return StepVectors(task, task.model(), task.samples("train"), Plan(7, batch, 2, 64, micro_batch=micro))


def computed(of: StepVectors, partition: int = 0) -> Tensor:
    out = torch.full((of.elements,), torch.nan)
    of.partition(1, partition, out)
    return out


def secret(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@each_task
def test_the_replay_has_the_bits_of_the_worker_and_of_a_plain_gradient(name: str) -> None:
    compute = partial(computed, vectors(name))
    plain = compute()
    worker, transcript = record(compute)
    again, verdict = replay(compute, transcript, generator=secret())
    assert torch.equal(plain, worker)
    assert torch.equal(worker, again)
    assert verdict.products >= 4
    assert 0 < verdict.worst < 1e-5
    assert verdict.where


def test_a_product_that_is_changed_in_place_leaves_the_others_as_they_are() -> None:
    """autograd would refuse a backward pass if products that share the transcript's memory shared its version."""
    name = "dropout and BatchNorm"
    worker, transcript = record(partial(computed, vectors(name)))
    kept = transcript.clone()
    again, _ = replay(partial(computed, vectors(name)), transcript, generator=secret())
    assert torch.equal(worker, again)
    assert not torch.equal(kept, transcript)  # so whoever needs it again passes a copy


def test_one_false_number_in_any_product_is_found_and_named() -> None:
    of = vectors("lenet")
    _, transcript = record(partial(computed, of))
    begins, found = [0], []
    while begins[-1] < len(transcript):  # ask the checker itself where each product ends
        with pytest.raises(CheatError) as ended:
            replay(partial(computed, of), transcript[: begins[-1]].clone(), generator=secret())
        found.append(str(ended.value).split(",")[0])
        begins.append(int(str(ended.value).split("ends at number ")[1].split(", and")[0].replace(",", "")))
    assert len(found) >= 7
    for name, begin, end in zip(found, begins, begins[1:], strict=False):
        false = transcript.clone()
        false[(begin + end) // 2] += 0.05 * false[begin:end].abs().max()
        with pytest.raises(CheatError, match=f"^{name}, product .* is false by"):
            replay(partial(computed, of), false, generator=secret())


def test_the_transcript_of_another_partition_or_of_no_products_at_all_is_found() -> None:
    of = vectors("lenet")
    _, other = record(partial(computed, of, 1))
    with pytest.raises(CheatError, match=r"^convolution, product 1, .* is false by"):
        replay(partial(computed, of), other, generator=secret())
    with pytest.raises(CheatError, match=r"^convolution, product 1, .* the transcript has 0"):
        replay(partial(computed, of), torch.empty(0), generator=secret())


def test_batch_statistics_of_a_replay_are_those_of_the_worker() -> None:
    name = "dropout and BatchNorm"
    worker, checker = vectors(name), vectors(name)
    _, transcript = record(partial(computed, worker))
    replay(partial(computed, checker), transcript, generator=secret())
    size = batch_norm.statistics_size(worker.model)
    found = [batch_norm.read_statistics(of.model, torch.empty(size)) for of in (worker, checker)]
    assert torch.equal(*found)
    assert float(found[0].abs().sum()) > 0


def test_a_mask_of_dropout_is_part_of_what_is_checked() -> None:
    """A worker whose masks are others sends products of other activations."""
    model = Pictures()
    inputs = torch.randn(6, 3, 16, 16, generator=secret(3))

    def forward(seed: int) -> Tensor:
        set_dropout(model, [(6, secret(seed))])
        return model(inputs)

    _, transcript = record(partial(forward, 1))
    replay(partial(forward, 1), transcript.clone(), generator=secret())
    with pytest.raises(CheatError, match="is false by"):
        replay(partial(forward, 2), transcript, generator=secret())


def test_autocast_is_replayed_by_computing_everything() -> None:
    """Products in bfloat16 are not in the transcript: their rounding would be the tolerance."""
    model, inputs = nn.Linear(256, 256), torch.randn(64, 256, generator=secret(3))

    def compute() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return torch.autograd.grad(model(inputs).float().square().sum(), model.weight)[0]

    worker, transcript = record(compute)
    assert not len(transcript)
    assert torch.equal(replay(compute, transcript, generator=secret())[0], worker)


def test_secret_vectors_differ_from_product_to_product_and_are_the_generators() -> None:
    from draco.replay.residual import Secrets

    taken = [Secrets(secret(seed), block=16).take for seed in (1, 1, 2)]
    drawn = [[take(10), take(10), take(40)] for take in taken]
    digests = {hashlib.sha256(part[:10].numpy().tobytes()).digest() for seed in (0, 2) for part in drawn[seed]}
    assert len(digests) == 6
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))


def test_memory_of_a_transcript_is_used_again_only_when_nobody_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_KEPT", [])
    compute = partial(torch.mm, *torch.randn(2, 512, 512, generator=secret()).unbind())
    first = record(compute)[1]
    address, numbers = first.data_ptr(), first.tolist()
    second = record(partial(torch.mm, torch.eye(512), torch.eye(512)))[1]
    assert second.data_ptr() != address
    assert first.tolist() == numbers
    part = first[:5]
    del first, second
    assert record(compute)[1].data_ptr() != address
    del part
    assert record(compute)[1].data_ptr() == address


def test_only_the_thread_that_records_has_its_products_recorded() -> None:
    a = torch.randn(256, 256, generator=secret())

    def compute() -> Tensor:
        with ThreadPoolExecutor(1) as other:
            assert torch.equal(other.submit(torch.mm, a, a).result(), a @ a)
        return torch.mm(a, a)

    _, transcript = record(compute)
    assert len(transcript) == 2 * 256 * 256
    assert len(record(lambda: record(compute))[1]) == 0  # the innermost counts


def test_all_other_operations_run_their_kernels_for_the_cpu() -> None:
    """Some have another kernel for any key, which rounds otherwise, such as layer_norm's."""
    record(lambda: None)
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::") or not has(name, "CPU"):
            continue
        table = torch._C._dispatch_dump_table(name).splitlines()
        own = next(line for line in table if line.startswith("CustomRNGKeyId"))
        assert "fallthrough" in own or "draco/replay/kernels.py" in own, name
