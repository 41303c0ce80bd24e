"""Training in one process: the promises of the design, end to end."""

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from draco import data, files
from draco.data import batches
from draco.errors import DecodeError, TrainingError
from draco.job import Job
from draco.runs import events, machine
from draco.schemes import Scheme
from draco.training import adversary, build, server, state, transport, worker
from draco.training.gradients import Plan, StepVectors
from draco.training.greeting import Greeting

Make = Callable[..., Job]
REPETITION = ("scheme.name=repetition", "scheme.adversaries=1")
CYCLIC = ("scheme.name=cyclic", "scheme.adversaries=1")
LIES = ("reverse_gradient", "constant", "random")


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


HONEST: dict[tuple[str, ...], torch.Tensor] = {}


@pytest.fixture
def honest(make_job: Make, train) -> Callable[..., torch.Tensor]:
    """Return the attack-free model of the test job with these options; each is trained once."""

    def model(*options: str) -> torch.Tensor:
        if options not in HONEST:
            HONEST[options] = train(make_job(*options)).model
        return HONEST[options]

    return model


@pytest.mark.parametrize(("rank", "attack"), [(1, LIES[0]), (2, LIES[1]), (3, LIES[2]), (4, LIES[0]), (5, LIES[1])])
def test_a_vote_on_bits_gives_the_attack_free_model_bit_for_bit(
    make_job: Make, train, honest, attack: str, rank: int
) -> None:
    """Wherever the Byzantine worker is; test_attacked_training.py has every attack."""
    attacked = train(make_job(*REPETITION, f"attack.name={attack}", f"attack.ranks=[{rank}]"))
    assert torch.equal(attacked.model, honest(*REPETITION))


@pytest.mark.parametrize("scheme", ["cyclic", "cyclic_dft"])
@pytest.mark.parametrize("attack", LIES)
def test_a_cyclic_code_gives_the_attack_free_model_up_to_rounding(
    make_job: Make, train, honest, scheme: str, attack: str
) -> None:
    coded = (f"scheme.name={scheme}", "scheme.adversaries=2")
    attacked = train(make_job(*coded, f"attack.name={attack}", "attack.who=drawn"))
    assert distance(attacked.model, honest(*coded)) < 1e-5


def test_without_a_code_the_same_attack_ruins_the_model(make_job: Make, train, honest) -> None:
    """The attacks are real: what the codes undo is not nothing."""
    attacked = train(make_job("attack.name=reverse_gradient", "attack.adversaries=1"))
    assert distance(attacked.model, honest()) > 0.1


def as_bytes(scheme: Scheme) -> Scheme:
    """Return the scheme with replies that hold the bytes of its float32 ones."""
    return scheme._replace(
        dtype=torch.uint8,
        elements=lambda d: 4 * d,
        encoder=lambda row, gradients: scheme.encoder(row, gradients).view(torch.uint8),
        decoder=lambda replies, *rest: scheme.decoder(replies.view(torch.float32), *rest),
    )


def padded(scheme: Scheme) -> Scheme:
    """Return the scheme with three numbers at the end of every reply that mean nothing, and with an error."""
    return scheme._replace(
        elements=lambda d: d + 3,
        encoder=lambda row, gradients: torch.cat([scheme.encoder(row, gradients), torch.full((3,), 1e9)]),
        decoder=lambda *replies: scheme.decoder(*replies)._replace(error=0.25),
    )


@pytest.mark.parametrize("changed", [as_bytes, padded])
@pytest.mark.parametrize("compression", ["none", "blosc2"])
def test_replies_of_another_kind_and_length_give_the_same_bits(
    make_job: Make, train, changed: Callable[[Scheme], Scheme], compression: str, monkeypatch
) -> None:
    job = make_job(f"wire.compression={compression}", "aggregator=median")
    plain = train(job)
    original = build.build_scheme
    monkeypatch.setattr(build, "build_scheme", lambda *a: changed(original(*a)))
    other = train(job)
    assert torch.equal(other.model, plain.model)
    steps = [[e for e in events.read(r.run / "events.jsonl") if e["event"] == "step"] for r in (plain, other)]
    errors = [[e.get("decoding_error") for e in run] for run in steps]
    assert errors == [[None] * 3, [0.25 if changed is padded else None] * 3]
    if compression == "none":
        d = 431_080 + 1
        elements = {as_bytes: 4 * d, padded: 4 * (d + 3)}[changed]
        assert [e["bytes_received"] for e in steps[1]] == [5 * (elements + 64)] * 3


def test_all_schemes_take_the_same_mean_gradient(honest) -> None:
    models = [honest(*scheme) for scheme in ((), REPETITION, CYCLIC)]
    assert distance(models[1], models[0]) < 1e-5
    assert distance(models[2], models[0]) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        (*CYCLIC, "attack.name=random", "schedule={name: cosine, warmup_steps: 2}"),
        (*REPETITION, "attack.name=constant", "attack.who=drawn", "optimizer.name=adam", "optimizer.lr=0.001"),
        (
            "aggregator=geometric_median",
            "attack={name: alie, z: 1.0, who: rotating, adversaries: 1}",
            "schedule={name: multistep, milestones: [2, 4], gamma: 0.5}",
        ),
        ("aggregator={name: centered_clipping, tau: 0.5, iterations: 2, pre: [{name: bucketing, size: 2}, nnm]}",),
        (*REPETITION, "schedule={name: step, step_size_steps: 2}", "optimizer.weight_decay=0.01"),
        (*REPETITION, "schedule={name: exponential, gamma: 0.9}", "optimizer.name=adamw", "optimizer.lr=0.001"),
    ],
    ids=["cyclic-cosine", "repetition-adam", "median-multistep", "clipping-buckets", "step-decay", "adamw-exponential"],
)
def test_an_interrupted_and_resumed_run_gives_the_same_bits(make_job: Make, train, options: tuple[str, ...]) -> None:
    options = tuple(o for o in options if not o.startswith("optimizer") or "name" in o or "lr" in o or "decay" in o)
    if any("optimizer.name" in o for o in options):
        options = ("optimizer={name: sgd}", *options)
    job = make_job(*options, "steps=6")
    whole = train(job)

    def stopping(at: int):
        def replacement(w: worker.Worker):
            def reply(task: transport.Task, model: torch.Tensor, frame: torch.Tensor) -> int:
                if task.step == at:
                    (partial / "stop").touch()
                return w.reply(task, model, frame)

            return reply

        return replacement

    from draco.job import to_yaml
    from draco.runs import directory as run_directory

    partial = run_directory.create(whole.run.parent, "partial", to_yaml(job))
    files.replace(partial / "secret", (whole.run / "secret").read_bytes())
    first = train(job, partial, {2: stopping(1)})
    assert (first.status.state, first.status.step) == ("interrupted", 1)
    second = train(job, partial, {2: stopping(4)})
    assert (second.status.state, second.status.step) == ("interrupted", 4)
    resumed = train(job, partial)
    assert (resumed.status.state, resumed.status.step) == ("succeeded", 6)
    assert torch.equal(resumed.model, whole.model)
    ledgers = [[e for e in events.read(r.run / "events.jsonl") if e["event"] == "end"][-1] for r in (whole, resumed)]
    assert all(ledgers[0][key] == ledgers[1][key] for key in ("caught", "missed", "falsely_accused"))


def test_monna_trusts_a_worker_wherever_its_row_is(make_job: Make, train, honest) -> None:
    options = ("scheme.adversaries=2", "attack={name: reverse_gradient, ranks: [1, 3]}")
    by_honest, by_other = (train(make_job(*options, f"aggregator={{name: monna, trusted: {rank}}}")) for rank in (2, 3))
    assert distance(by_honest.model, honest()) < 0.1 < distance(by_other.model, honest())


BATCH_NORM = ("model=resnet18", "workers=3", "batch_size=6", "steps=1", *REPETITION)


def test_batch_norm_statistics_do_not_come_from_a_byzantine_worker(make_job: Make, train) -> None:
    honest = train(make_job(*BATCH_NORM))
    attacked = train(make_job(*BATCH_NORM, "attack.name=random", "attack.ranks=[1]"))
    assert torch.equal(attacked.model, honest.model)


def test_batch_norm_statistics_are_the_mean_over_partitions_of_what_torch_measures(make_job: Make, train) -> None:
    """One step by hand with torch's own running averages, partition by partition."""
    job = make_job("model=resnet18", "workers=2", "batch_size=6", "steps=1")
    trained = train(job)
    split = data.load("synthetic", Path(job.data.root), "train")
    from draco.sampling import batch_indices

    indices = batch_indices(job.seed, 1, 6, len(split.labels))
    means = []
    for part in (indices[:3], indices[3:]):
        model = build.Built(job).model
        model(batches.batch(split, part, None)[0])
        means.append(torch.cat([torch.cat([b.running_mean, b.running_var]) for b in _norms(model)]))
    final = build.Built(job).model
    from draco.training import checkpoint

    final.load_state_dict(checkpoint.load(checkpoint.newest(trained.run / "checkpoints"))["model"])
    got = torch.cat([torch.cat([b.running_mean, b.running_var]) for b in _norms(final)])
    torch.testing.assert_close(got, (means[0] + means[1]) / 2, rtol=1e-5, atol=1e-6)


def _norms(model: torch.nn.Module) -> list[torch.nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def vectors(job: Job, partitions: int) -> StepVectors:
    built = build.Built(job)
    plan = Plan(job.seed, job.batch_size, partitions, len(built.train))
    return StepVectors(built.task, built.model, built.train, plan)


@pytest.mark.parametrize(("batch", "partitions"), [(12, 3), (13, 5), (5, 5), (9, 1)])
def test_the_mean_over_partitions_is_the_mean_over_the_batch(make_job: Make, batch: int, partitions: int) -> None:
    job = make_job(f"batch_size={batch}", "workers=1", "scheme=uncoded")
    cut, whole = vectors(job, partitions), vectors(job, 1)
    total = torch.zeros(cut.elements)
    out = torch.empty(cut.elements)
    for j in range(partitions):
        cut.partition(1, j, out)
        total += out / partitions
    whole.partition(1, 0, out)
    torch.testing.assert_close(total, out, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("model", ["lenet", "fc"])
def test_one_backward_over_weighted_losses_equals_explicit_encoding(make_job: Make, model: str) -> None:
    job = make_job(*CYCLIC, "workers=9", "batch_size=20", f"model={model}")
    scheme = build.build_scheme(job)
    source = vectors(job, 9)
    for row in (0, 4, 8):
        mine = scheme.assignment[row].nonzero()[0].tolist()
        parts = torch.empty(len(mine), source.elements)
        for out, j in zip(parts, mine, strict=True):
            source.partition(2, j, out)
        free = torch.empty(source.elements)
        source.weighted(2, mine, scheme.weights[row, mine].tolist(), free)
        assert distance(free, scheme.encode(row, parts)) < 1e-6


@pytest.mark.parametrize(
    ("model", "encoding", "free"), [("lenet", "auto", True), ("resnet18", "auto", False), ("lenet", "explicit", False)]
)
def test_encoding_is_free_where_the_model_allows_it(make_job: Make, model: str, encoding: str, free: bool) -> None:
    job = make_job(*CYCLIC, f"model={model}", f"scheme.encoding={encoding}")
    assert build.Built(job).encodes_freely is free


def test_free_and_explicit_encoding_train_the_same_model(make_job: Make, train, honest) -> None:
    free, explicit = honest(*CYCLIC), train(make_job(*CYCLIC, "scheme.encoding=explicit")).model
    assert distance(free, explicit) < 1e-5
    assert not torch.equal(free, explicit)


@pytest.mark.parametrize("options", [REPETITION, (*CYCLIC, "scheme.encoding=explicit")], ids=["repetition", "cyclic"])
def test_a_simulation_computes_each_partition_once(
    make_job: Make, options: tuple[str, ...], monkeypatch, train
) -> None:
    job = make_job(*options)
    computed: list[tuple[int, int]] = []
    original = StepVectors.partition

    def counting(self: StepVectors, step: int, partition: int, out: torch.Tensor) -> None:
        computed.append((step, partition))
        original(self, step, partition, out)

    monkeypatch.setattr(StepVectors, "partition", counting)
    train(job)
    k = build.build_scheme(job).assignment.shape[1]
    assert sorted(computed) == [(step, j) for step in (1, 2, 3) for j in range(k)]


@pytest.mark.gpu
@pytest.mark.parametrize("options", [REPETITION, CYCLIC, BATCH_NORM], ids=["repetition", "cyclic", "batch-norm"])
def test_training_on_a_gpu_gives_nearly_the_same_model(make_job: Make, train, options: tuple[str, ...]) -> None:
    on_gpu = train(make_job(*options, "device=cuda", "attack.name=reverse_gradient", "eval_every=1"))
    assert distance(on_gpu.model, train(make_job(*options)).model) < 1e-2


@pytest.mark.parametrize("options", [REPETITION, CYCLIC, ("scheme.name=cyclic_dft", "scheme.adversaries=2")])
def test_byzantine_workers_are_caught_and_no_others_accused(make_job: Make, train, options: tuple[str, ...]) -> None:
    job = make_job(*options, "attack.name=reverse_gradient", "attack.magnitude=1.01")
    trained = train(job)
    log = list(events.read(trained.run / "events.jsonl"))
    byzantine = sorted(adversary.byzantine(job, 1))
    assert [e["suspects"] for e in log if e["event"] == "step"] == [byzantine] * 3
    assert [e["byzantine"] for e in log if e["event"] == "step"] == [byzantine] * 3
    assert (log[-1]["caught"], log[-1]["missed"], log[-1]["falsely_accused"]) == (3 * len(byzantine), 0, 0)


def test_a_byzantine_worker_without_a_reply_is_not_counted(
    make_job: Make, train, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = transport.Simulated.exchange

    def without(self, tasks, *args):
        return (arrival for arrival in whole(self, tasks, *args) if (tasks[0].step, arrival[0]) != (2, 3))

    monkeypatch.setattr(transport.Simulated, "exchange", without)
    trained = train(make_job(*CYCLIC, "attack.name=reverse_gradient", "attack.ranks=[3]"))
    steps = [e for e in events.read(trained.run / "events.jsonl") if e["event"] == "step"]
    assert [e["byzantine"] for e in steps] == [e["suspects"] for e in steps] == [[3], [], [3]]
    assert [e["straggling"] for e in steps] == [[], [3], []]


def test_the_start_tells_the_servers_machine(make_job: Make, train) -> None:
    log = events.read(train(make_job("steps=1")).run / "events.jsonl")
    (told,) = [e["machine"] for e in log if e["event"] == "start"]
    assert told["torch"] == torch.__version__
    assert told["cores"] == len(os.sched_getaffinity(0))
    assert set(told) == {"draco", "python", "torch", "numpy", "system", "cpu", "cores", "instructions"}


def test_the_cpus_name_is_what_linux_calls_it_and_else_its_architecture(tmp_path: Path) -> None:
    (tmp_path / "x86").write_text("processor\t: 0\nmodel name\t: A CPU @ 2.00GHz: fast\nmodel name\t: another\n")
    (tmp_path / "arm").write_text("processor\t: 0\nBogoMIPS\t: 50.00\nmodel name\t:\n")
    assert machine.cpu_name(tmp_path / "x86") == "A CPU @ 2.00GHz: fast"
    assert machine.cpu_name(tmp_path / "arm") == machine.cpu_name(tmp_path / "none") == platform.machine()


def test_every_step_says_where_its_time_and_bytes_went(make_job: Make, train) -> None:
    log = list(events.read(train(make_job(*CYCLIC)).run / "events.jsonl"))
    steps = [e for e in log if e["event"] == "step"]
    assert [e["step"] for e in steps] == [1, 2, 3]
    for event in steps:
        assert set(event["seconds"]) == {"compute", "encode", "communication", "decode", "aggregate", "update"}
        assert all(s >= 0 for s in event["seconds"].values())
        assert event["bytes_received"] == 5 * (64 + 4 * (431_080 + 1))


def test_the_wire_formats_train_nearly_the_same_model(make_job: Make, train, honest) -> None:
    exact = honest(*CYCLIC)
    assert torch.equal(train(make_job(*CYCLIC, "wire.compression=blosc2")).model, exact)
    attack = ("attack.name=reverse_gradient",)
    assert distance(train(make_job(*CYCLIC, *attack, "wire.dtype=float16")).model, exact) < 1e-3
    assert distance(train(make_job(*CYCLIC, *attack, "wire.dtype=bfloat16")).model, exact) < 1e-2


def garbled(kind: str):
    """Return a replacement of a worker that breaks the protocol instead of the mathematics."""

    def replacement(w: worker.Worker):
        def reply(task: transport.Task, model: torch.Tensor, frame: torch.Tensor) -> int:
            length = w.reply(task, model, frame)
            if kind == "nan":
                frame[64:68] = torch.tensor([0, 0, 0xC0, 0x7F], dtype=torch.uint8)
            elif kind == "infinite":
                frame[68:72] = torch.tensor([0, 0, 0x80, 0x7F], dtype=torch.uint8)
            elif kind == "stale":
                return w.reply(task._replace(step=task.step - 1), model, frame)
            elif kind == "short":
                return length - 4
            elif kind == "empty":
                return 0
            elif kind == "noise":
                frame.random_(generator=torch.Generator().manual_seed(task.step))
            return length

        return reply

    return replacement


@pytest.mark.parametrize("kind", ["nan", "infinite", "stale", "short", "empty", "noise"])
@pytest.mark.parametrize("options", [REPETITION, CYCLIC], ids=["repetition", "cyclic"])
def test_a_reply_that_breaks_the_protocol_is_refused_and_named(
    make_job: Make, train, honest, kind: str, options
) -> None:
    attacked = train(make_job(*options), replace={4: garbled(kind)})
    assert distance(attacked.model, honest(*options)) < 1e-5
    steps = [e for e in events.read(attacked.run / "events.jsonl") if e["event"] == "step"]
    assert all(list(e["refused"]) == ["4"] and e["suspects"] == [4] for e in steps)


def test_too_many_byzantine_workers_end_the_run_with_its_state_saved(make_job: Make, train) -> None:
    job = make_job(*REPETITION, "attack.name=random", "attack.ranks=[1, 2, 3, 4]", "steps=4")
    with pytest.raises(DecodeError):
        train(job)


def test_a_run_that_fails_says_so_and_leaves_a_checkpoint(make_job: Make, train, tmp_path: Path) -> None:
    job = make_job(*CYCLIC, "steps=5")

    def failing_late(w: worker.Worker):
        def reply(task: transport.Task, model: torch.Tensor, frame: torch.Tensor) -> int:
            return w.reply(task, model, frame) if task.step < 3 else 0

        return reply

    with pytest.raises(DecodeError):
        train(job, replace=dict.fromkeys((1, 2), failing_late))
    (run,) = (tmp_path / "runs").iterdir()
    status = json.loads((run / "state.json").read_text())
    assert (status["state"], status["step"]) == ("failed", 2)
    resumed = train(job, run)
    assert resumed.status.state == "succeeded"
    assert torch.equal(resumed.model, train(job).model)


def test_a_diverged_model_is_an_error_and_not_a_result(make_job: Make, train) -> None:
    job = make_job("attack.name=reverse_gradient", "attack.adversaries=1", "attack.magnitude=1e30", "steps=8")
    with pytest.raises(TrainingError, match="training has diverged"):
        train(job)


def test_votes_are_chosen_from_what_workers_say_of_themselves(make_job: Make) -> None:
    job = make_job(*REPETITION)
    a, b = Greeting("a"), Greeting("b")
    assert server.choose_vote(job, [a, a, a])[0] == "exact"
    assert server.choose_vote(job, [a, None, a, Greeting(fault="no file")])[0] == "exact"
    vote, why = server.choose_vote(job, [a, b, a])
    assert vote == "tolerance"
    assert "2 different platforms" in why
    assert server.choose_vote(make_job(*REPETITION, "scheme.vote=exact"), [a, b])[0] == "exact"


def test_rows_of_the_code_are_handed_out_anew_every_step(make_job: Make, train) -> None:
    seen: list[int] = []

    def watching(w: worker.Worker):
        def reply(task: transport.Task, model: torch.Tensor, frame: torch.Tensor) -> int:
            seen.append(task.row)
            return w.reply(task, model, frame)

        return reply

    train(make_job(*CYCLIC, "steps=12"), replace={1: watching})
    assert len(set(seen)) > 2


def undecodable_at_first(times: int, asked: list[tuple[int, int]]):
    """A worker that sends noise the first so many times that it is asked for a step."""

    def replacement(w: worker.Worker):
        def reply(task: transport.Task, model: torch.Tensor, frame: torch.Tensor) -> int:
            asked.append((task.step, task.row))
            length = w.reply(task, model, frame)
            if task.step == 2 and [at for at, _ in asked].count(task.step) <= times:
                frame[-64:].view(torch.float32).mul_(-100.0 - w.rank)
            return length

        return reply

    return replacement


@pytest.mark.parametrize("times", [1, 2])
def test_rows_are_drawn_anew_where_the_replies_cannot_be_decoded(make_job: Make, train, honest, times: int) -> None:
    job = make_job(*CYCLIC, "steps=3")
    asked: dict[int, list[tuple[int, int]]] = {1: [], 2: []}
    trained = train(job, replace={rank: undecodable_at_first(times, seen) for rank, seen in asked.items()})
    assert distance(trained.model, honest(*CYCLIC)) < 1e-5
    steps = [e for e in events.read(trained.run / "events.jsonl") if e["event"] == "step"]
    assert [len(e.get("redrawn", [])) for e in steps] == [0, times, 0]
    assert [e["suspects"] for e in steps] == [[], [], []]
    for seen in asked.values():
        assert [step for step, _ in seen] == [1, *[2] * (times + 1), 3]
    assert len({tuple(seen[1 + draw][1] for seen in asked.values()) for draw in range(times + 1)}) == times + 1


def test_what_cannot_be_decoded_with_any_rows_ends_the_run(make_job: Make, train) -> None:
    asked: list[tuple[int, int]] = []
    with pytest.raises(DecodeError):
        train(make_job(*CYCLIC), replace=dict.fromkeys((1, 2), undecodable_at_first(100, asked)))
    assert [step for step, _ in asked] == [1, 1, *[2, 2] * server.DRAWS]


def test_the_ledger_counts_by_worker_and_step() -> None:
    ledger = state.Ledger()
    ledger.note({1, 2}, {2, 3})
    ledger.note({2}, {2})
    assert (ledger.caught, ledger.missed, ledger.falsely_accused) == (2, 1, 1)
    assert ledger.suspicions == {1: 1, 2: 2}
