"""Worker momentum and clipping: their formulas, whose they are, and that they survive interruptions to the bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draco import files
from draco.attacks import ATTACKS
from draco.errors import TrainingError
from draco.job import Job, to_yaml
from draco.job.sections import LocalSection
from draco.runs import directory as run_directory
from draco.runs import events
from draco.sampling import generator
from draco.training import checkpoint, state, transport, worker
from draco.training.build import Built
from draco.training.worker_momentum import LocalSteps, clip

Make = Callable[..., Job]
ONE = range(1)
MOMENTUM = ("local.momentum=0.9", "optimizer={name: sgd, lr: 0.05}")
REVERSE = ("aggregator.name=median", "aggregator.f=1", "attack.name=reverse_gradient", "attack.adversaries=1")


def test_what_is_sent_is_the_moving_average_of_a_plain_loop() -> None:
    local, beta = LocalSteps(LocalSection(momentum=0.8), 5, ONE), 0.8
    average = np.zeros(5)
    for t in range(1, 8):
        vector = torch.randn(9, generator=generator(1, "momentum", t))
        rest = vector[5:].clone()
        for i in range(5):
            average[i] = beta * average[i] + (1 - beta) * float(vector[i])
        local(t, 0, vector)
        np.testing.assert_allclose(vector[:5].numpy(), average, rtol=1e-5, atol=1e-7)
        assert torch.equal(vector[5:], rest)  # statistics and loss are no part of it
        assert torch.equal(local.of(ONE)[0], vector[:5])


def test_clipping_comes_before_momentum() -> None:
    both, limit = LocalSteps(LocalSection(momentum=0.5, clip=2.0), 4, ONE), 2.0
    average = np.zeros(4)
    for t in range(1, 6):
        vector = 3 * torch.randn(6, generator=generator(1, "both", t))
        gradient = vector[:4].double().numpy()
        average = 0.5 * average + 0.5 * gradient * min(1.0, limit / np.linalg.norm(gradient))
        both(t, 0, vector)
        np.testing.assert_allclose(vector[:4].numpy(), average, rtol=1e-5, atol=1e-7)


@given(size=st.integers(1, 40), scale=st.floats(-30, 30), limit=st.floats(-3, 3), seed=st.integers(0, 1000))
def test_a_clipped_gradient_has_the_limit_as_norm_and_the_same_direction(
    size: int, scale: float, limit: float, seed: int
) -> None:
    gradient = torch.randn(size, generator=generator(seed, "clip")) * 10**scale
    before, most = gradient.double().numpy(), 10**limit
    clip(gradient, most)
    norm = np.linalg.norm(before)
    if norm <= most:
        assert np.array_equal(gradient.double().numpy(), before)
    else:
        np.testing.assert_allclose(gradient.double().numpy(), before * (most / norm), rtol=1e-6, atol=1e-44)
        assert np.linalg.norm(gradient.double().numpy()) <= most * (1 + 1e-6)


def test_the_statistics_and_the_loss_are_no_part_of_the_norm() -> None:
    vector = torch.tensor([3.0, 4.0, 1e6, -1e6, 7.0])
    LocalSteps(LocalSection(clip=5.0), 2, ONE)(1, 0, vector)
    assert vector.tolist() == [3.0, 4.0, 1e6, -1e6, 7.0]
    LocalSteps(LocalSection(clip=1.0), 2, ONE)(1, 0, vector)
    torch.testing.assert_close(vector, torch.tensor([0.6, 0.8, 1e6, -1e6, 7.0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 3], ids=["gradient", "loss"])
def test_what_is_not_finite_is_sent_and_forgotten(bad: float, where: int) -> None:
    local = LocalSteps(LocalSection(momentum=0.9, clip=1.0), 3, ONE)
    local(1, 0, torch.ones(4))
    before = local.momenta.clone()
    assert before.abs().min() > 0
    vector = torch.ones(4)
    vector[where] = bad
    local(2, 0, vector)
    assert not torch.isfinite(vector).all()
    assert torch.equal(local.momenta, before)


def test_rows_have_momenta_of_their_own_and_the_last_call_of_a_step_counts() -> None:
    together, apart = (
        LocalSteps(LocalSection(momentum=0.9), 3, range(2, 5)),
        LocalSteps(LocalSection(momentum=0.9), 3, range(3, 4)),
    )
    for t in (1, 2, 3):
        vectors = torch.randn(5, 3, generator=generator(1, "rows", t))
        alone = vectors[3].clone()
        together(t, 3, 7 * alone)  # of which nothing is left after the second call
        for row in (4, 3, 2):
            together(t, row, vectors[row])
        apart(t, 3, alone)
        assert torch.equal(vectors[3], alone)
        assert torch.equal(together.of(range(3, 4)), apart.of(range(3, 4)))
        assert torch.equal(together.of(range(2, 5)), vectors[2:])


# --- in training -----------------------------------------------------------------------------------------------------


def test_momentum_trains_as_momentum_at_the_server_where_the_aggregator_is_the_mean(make_job: Make, train) -> None:
    """The mean of moving averages is the moving average of means: SGD with dampening, written out."""
    local = train(make_job(*MOMENTUM, "steps=5")).model
    plain = train(make_job("optimizer={name: sgd, lr: 0.05}", "steps=5")).model
    job = make_job("optimizer={name: sgd, lr: 0.05}", "steps=5")
    assert not torch.equal(local, plain)
    torch.testing.assert_close(local, by_hand(job, 0.9), rtol=1e-4, atol=1e-6)


def by_hand(job: Job, beta: float) -> torch.Tensor:
    """Train by a plain loop: one gradient of the whole batch, one average, one step."""
    import torch.nn.functional as F

    from draco import data
    from draco.data import batches
    from draco.sampling import batch_indices
    from draco.training import build

    split = data.load("synthetic", Path(job.data.root), "train")
    model = build.Built(job).model
    averages = [torch.zeros_like(p) for p in model.parameters()]
    for step in range(1, job.steps + 1):
        inputs, labels = batches.batch(split, batch_indices(job.seed, step, job.batch_size, len(split.labels)), None)
        gradients = torch.autograd.grad(F.cross_entropy(model(inputs), labels), list(model.parameters()))
        for parameter, average, gradient in zip(model.parameters(), averages, gradients, strict=True):
            average.mul_(beta).add_((1 - beta) * gradient)
            parameter.data -= 0.05 * average
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def stopping(run: Path, at: int):
    """Return a replacement of a worker that asks for the end of the run at a step."""

    def replacement(w: worker.Worker):
        def reply(task: transport.Task, model: torch.Tensor, frame: torch.Tensor) -> int | None:
            if task.step == at:
                (run / "stop").touch()
            return w.reply(task, model, frame)

        return reply

    return replacement


CASES = {
    "honest-clipped": ("local.clip=0.5",),
    "attacked-blosc2": (*REVERSE, "wire.compression=blosc2"),
    "drawn-shards": (*REVERSE, "attack.who=drawn", "data.split=dirichlet", "data.alpha=0.1"),
    "informed": (*REVERSE, "attack={name: alie, adversaries: 1, who: drawn}"),
    "label-flip": (*REVERSE, "attack={name: label_flip, ranks: [3], from_step: 2}"),
    "refused": (*REVERSE, "attack={name: constant, adversaries: 1}", "scheme.adversaries=1"),
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_an_interrupted_run_gives_the_bits_of_one_that_was_not(make_job: Make, train, options, monkeypatch) -> None:
    """The last Byzantine worker sends what is refused, and keeps its honest momentum all the same."""
    infinite = replace(ATTACKS["constant"], function=ATTACKS["inf"].function)
    monkeypatch.setitem(ATTACKS, "constant", infinite)
    job = make_job(*MOMENTUM, *options, "steps=5")
    whole = train(job)
    refused = [e["refused"] for e in events.read(whole.run / "events.jsonl") if e["event"] == "step"]
    assert all(map(bool, refused)) == (job.attack.name == "constant")
    partial = run_directory.create(whole.run.parent, "partial", to_yaml(job))
    files.replace(partial / "secret", (whole.run / "secret").read_bytes())
    for at in (1, 3):
        assert train(job, partial, {2: stopping(partial, at)}).status.step == at
    resumed = train(job, partial)
    assert (resumed.status.state, resumed.status.step) == ("succeeded", 5)
    assert torch.equal(resumed.model, whole.model)
    assert torch.equal(momenta(resumed.run), momenta(whole.run))


def momenta(run: Path) -> torch.Tensor:
    found: torch.Tensor = checkpoint.load(checkpoint.newest(run / "checkpoints"))["momenta"]
    return found


def test_a_resumed_worker_that_is_handed_nothing_would_give_other_bits(make_job: Make, train, monkeypatch) -> None:
    """What the test above rests on: the momentum matters."""
    job = make_job(*MOMENTUM, "steps=4")
    whole = train(job)
    partial = run_directory.create(whole.run.parent, "partial", to_yaml(job))
    train(job, partial, {2: stopping(partial, 2)})
    monkeypatch.setattr("draco.training.transport.Simulated.hand_momenta", lambda self, given: None)
    assert not torch.equal(train(job, partial).model, whole.model)


@pytest.mark.parametrize("options", [(), REVERSE], ids=["honest", "attacked"])
def test_the_checkpoint_holds_the_momentum_that_every_worker_has(make_job: Make, train, options) -> None:
    """A Byzantine worker's too, which is not what it sends."""
    had: dict[int, torch.Tensor] = {}

    def keeping(w: worker.Worker):
        had[w.rank] = w.momenta[0]
        return w.reply

    trained = train(make_job(*MOMENTUM, *options), replace=dict.fromkeys(range(1, 6), keeping))
    assert torch.equal(momenta(trained.run), torch.stack([had[rank] for rank in range(1, 6)]))
    assert len({tuple(row[:50].tolist()) for row in momenta(trained.run)}) == 5


def test_an_informed_adversary_knows_what_the_others_send_and_not_only_their_gradients(make_job: Make, train) -> None:
    sent: dict[int, torch.Tensor] = {}

    def watching(w: worker.Worker):
        def reply(task: transport.Task, model: torch.Tensor, frame: torch.Tensor) -> int | None:
            length = w.reply(task, model, frame)
            sent[task.step] = frame[64 : 64 + 4 * w.vectors.parameters].clone().view(torch.float32)
            return length

        return reply

    job = make_job(*MOMENTUM, "aggregator={name: median, f: 1}", "attack={name: alie, ranks: [2], z: 1.5}", "steps=3")
    honest = momenta(train(job, replace={2: watching}).run)[[0, 2, 3, 4]]
    expected = honest.mean(0) - 1.5 * honest.std(0, unbiased=False)
    torch.testing.assert_close(sent[3], expected, rtol=1e-4, atol=1e-6)


def test_a_byzantine_worker_that_flips_labels_keeps_the_momentum_that_it_sends(make_job: Make, train) -> None:
    sent: dict[int, torch.Tensor] = {}

    def watching(w: worker.Worker):
        def reply(task: transport.Task, model: torch.Tensor, frame: torch.Tensor) -> int | None:
            length = w.reply(task, model, frame)
            sent[task.step] = frame[64 : 64 + 4 * w.vectors.parameters].clone().view(torch.float32)
            return length

        return reply

    job = make_job(*MOMENTUM, "aggregator={name: median, f: 1}", "attack={name: label_flip, ranks: [2]}", "steps=3")
    kept = momenta(train(job, replace={2: watching}).run)
    assert torch.equal(sent[3], kept[1])


def test_checkpoints_of_jobs_without_momentum_hold_none(make_job: Make, train) -> None:
    run = train(make_job("local.clip=1.0")).run
    assert "momenta" not in checkpoint.load(checkpoint.newest(run / "checkpoints"))


@pytest.mark.parametrize("compression", ["none", "blosc2"])
def test_what_a_byzantine_worker_attaches_changes_neither_the_bytes_reported_nor_what_is_decoded(
    make_job: Make, train, compression: str, monkeypatch
) -> None:
    """A Byzantine worker that sends the truth, so that there is something to compare with."""
    job = make_job(*MOMENTUM, *REVERSE, f"wire.compression={compression}")
    honest = train(make_job(*MOMENTUM, "aggregator.name=median", "aggregator.f=1", f"wire.compression={compression}"))
    monkeypatch.setitem(ATTACKS, "reverse_gradient", ATTACKS["none"])
    attached = train(job)
    assert torch.equal(attached.model, honest.model)
    sizes = [
        [e["bytes_received"] for e in events.read(r.run / "events.jsonl") if e["event"] == "step"]
        for r in (attached, honest)
    ]
    assert sizes[0] == sizes[1]


def cutting(bytes_cut: int):
    """Return a replacement of a worker whose frame lacks its last bytes."""

    def replacement(w: worker.Worker):
        def reply(task: transport.Task, model: torch.Tensor, frame: torch.Tensor) -> int | None:
            return max((w.reply(task, model, frame) or 0) - bytes_cut, 0)

        return reply

    return replacement


@pytest.mark.parametrize("bytes_cut", [4, 1 << 23])
def test_a_frame_without_the_whole_momentum_is_refused_and_the_last_momentum_stays(
    make_job: Make, train, bytes_cut: int
) -> None:
    job = make_job(*MOMENTUM, *REVERSE, "scheme.adversaries=1", "attack.ranks=[3]")
    trained = train(job, replace={3: cutting(bytes_cut)})
    steps = [e for e in events.read(trained.run / "events.jsonl") if e["event"] == "step"]
    assert all(list(e["refused"]) == ["3"] for e in steps)
    kept = momenta(trained.run)
    assert kept[[0, 1, 3, 4]].abs().sum(1).min() > 0
    assert torch.isfinite(kept).all()


def test_a_step_that_is_not_taken_changes_no_momentum_that_is_kept(make_job: Make, train, tmp_path: Path) -> None:
    """Without a code nobody can be done without; the workers' averages have moved on, the server's have not."""

    def failing(w: worker.Worker):
        def reply(task: transport.Task, model: torch.Tensor, frame: torch.Tensor) -> int | None:
            return w.reply(task, model, frame) if task.step < 3 else 0

        return reply

    job = make_job(*MOMENTUM, "steps=4")
    with pytest.raises(TrainingError):
        train(job, replace={5: failing})
    (run,) = (tmp_path / "runs").iterdir()
    assert run_directory.read_status(run).step == 2
    assert torch.equal(train(job, run).model, train(job).model)


@pytest.mark.parametrize("row", [slice(None), slice(0, 1)], ids=["all", "one"])
def test_momenta_of_another_size_are_not_restored(make_job: Make, train, row: slice) -> None:

    job = make_job(*MOMENTUM)
    contents = checkpoint.load(checkpoint.newest(train(job).run / "checkpoints"))
    contents["momenta"] = contents["momenta"][row, :-1] if row == slice(None) else contents["momenta"][row]
    training = state.Training(Built(job))
    with pytest.raises(checkpoint.CheckpointError, match="momenta: is "):
        training.restore(3, {**contents, "momenta": contents["momenta"].contiguous()})
