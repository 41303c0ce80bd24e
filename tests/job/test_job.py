"""The job spec: what is accepted, what is refused and in which words, and what follows from a job."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draco.aggregators import AGGREGATORS
from draco.attacks import ATTACKS
from draco.data import DATASETS
from draco.errors import JobError
from draco.job import (
    Job,
    aggregator_f,
    byzantine_count,
    parse,
    schema,
    sizes,
    to_dict,
    to_words,
    to_yaml,
    total_steps,
    warnings,
)
from draco.job.fields import ORIGINAL_OPTIONS, PRE_AGGREGATOR, SECTIONS
from draco.job.messages import choices, properties
from draco.models import MODELS
from draco.schemes import CODES, SCHEMES, build

GOOD = """\
name: small
workers: 9
model: lenet
data: mnist
batch_size: 180
steps: 100
scheme:
  name: cyclic
  adversaries: 1
attack: reverse_gradient
"""


def faults(text: str = GOOD, *overrides: str) -> list[str]:
    with pytest.raises(JobError) as caught:
        parse(text, "jobs/x.yaml", overrides)
    assert all(fault.startswith("jobs/x.yaml: ") and "\n" not in fault for fault in caught.value.faults)
    return [fault.removeprefix("jobs/x.yaml: ") for fault in caught.value.faults]


def good(*overrides: str) -> Job:
    return parse(GOOD, "jobs/x.yaml", overrides)


# --- what is accepted ------------------------------------------------------------------------------------------------


def test_a_job_holds_what_its_file_says_and_the_defaults() -> None:
    job = good()
    assert (job.name, job.workers, job.batch_size, job.steps, job.epochs) == ("small", 9, 180, 100, None)
    assert (job.scheme.name, job.scheme.adversaries, job.scheme.encoding) == ("cyclic", 1, "auto")
    assert (job.seed, job.launcher, job.threads, job.device) == (7, "mpi", 1, "cpu")
    assert (job.attack.name, job.attack.magnitude, job.attack.who) == ("reverse_gradient", 100.0, "fixed")
    assert (job.optimizer.name, job.optimizer.lr, job.optimizer.momentum) == ("sgd", 0.01, 0.0)
    assert (job.checkpoint_every, job.eval_every, job.reply_timeout_s) == (50, None, 60.0)
    assert job.scheme.tolerance is None


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        good().workers = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        good().scheme.adversaries = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("section", "short", "long"),
    [
        ("data", "mnist_5k", {"name": "mnist_5k"}),
        ("scheme", "repetition", {"name": "repetition"}),
        ("aggregator", "median", {"name": "median"}),
        ("attack", "none", {"name": "none"}),
        ("optimizer", "adam", {"name": "adam"}),
        ("schedule", "cosine", {"name": "cosine"}),
        ("wire", "bfloat16", {"dtype": "bfloat16"}),
        ("on_loss", "replace", {"name": "replace"}),
    ],
)
def test_a_bare_string_stands_for_a_section_with_that_name(section: str, short: str, long: dict[str, str]) -> None:
    start = ["attack=none"]  # so that no scheme is short of adversaries
    assert good(*start, f"{section}={short}") == good(*start, f"{section}={json.dumps(long)}")
    assert to_dict(good(*start, f"{section}={short}"))[section] != to_dict(good(*start))[section] or section == "attack"


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1E-3", 1e-3), ("2", 2.0), (".5", 0.5)])
def test_numbers_are_floats_in_every_usual_notation(text: str, value: float) -> None:
    lr = good(f"optimizer.lr={text}").optimizer.lr
    assert lr == value
    assert isinstance(lr, float)


def test_the_defaults_of_adam_and_adamw_are_those_of_torch() -> None:
    assert (good("optimizer=adam").optimizer.lr, good("optimizer=adam").optimizer.weight_decay) == (0.001, 0.0)
    assert (good("optimizer=adamw").optimizer.lr, good("optimizer=adamw").optimizer.weight_decay) == (0.001, 0.01)
    assert good("optimizer={name: adamw, weight_decay: 0.0}").optimizer.weight_decay == 0.0


# --- what is refused -------------------------------------------------------------------------------------------------


def test_the_example_of_the_readme_is_refused_in_its_words() -> None:
    got = faults(GOOD, "workers=6", "scheme.adversaries=3")
    assert got == ["scheme.adversaries: 3 needs at least 7 workers, got 6"]


def test_an_unknown_key_is_refused_with_the_key_that_was_meant() -> None:
    assert faults(GOOD.replace("scheme:", "shceme:")) == ["shceme: unknown key; did you mean scheme?"]


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("scheme.adversarys=1", "scheme.adversarys: unknown key; did you mean scheme.adversaries?"),
        ("lr=0.1", "lr: unknown key; did you mean optimizer.lr?"),
        ("scheme.workers=3", "scheme.workers: unknown key; did you mean workers?"),
        ("group-size=3", "group-size: unknown key; did you mean scheme.redundancy?"),
        ("worker_fail=1", "worker_fail: unknown key; did you mean scheme.adversaries?"),
    ],
)
def test_a_key_in_the_wrong_place_or_from_the_original_is_told_its_place(override: str, fault: str) -> None:
    assert faults(GOOD, override) == [fault]


def test_a_key_like_no_other_is_told_all_keys_there_are() -> None:
    (fault,) = faults(GOOD, "wire.zzz=1")
    assert fault == "wire.zzz: unknown key; the keys are dtype, compression"


def test_all_faults_are_reported_at_once_across_fields_sections_and_checks() -> None:
    text = """\
name: Not Kebab
workers: 6
workers: 7
modle: lenet
data: {name: mnist, augment: true}
batch_size: 100000
steps: 10
epochs: 2
scheme: {name: cyclic, adversaries: 4, vote: exact}
attack: {name: rev_grad, magnitude: .nan, ranks: [9, x]}
optimizer: {name: adam, momentum: 0.9}
wire: float64
tensorboard: perhaps
"""
    got = faults(text)
    starts = [
        "line 3: workers: duplicate key, first on line 2",
        "modle: unknown key; did you mean model?",
        "name: must be lower-case words",
        "attack.name: must be one of none, reverse_gradient, constant, random, sign_flip, ",
        "attack.magnitude: must be a number above 0.0 and at most 1e+30, got nan",
        "attack.ranks: must be a list, each a whole number at least 1, or null, got [9, 'x']",
        "wire.dtype: must be one of float32, float16, bfloat16, got 'float64'",
        "tensorboard: must be true or false, got 'perhaps'",
        "scheme.vote: applies to repetition, detox, placement, approximate; scheme.name is cyclic: leave it out",
        "optimizer.momentum: applies to sgd; optimizer.name is adam: leave it out",
        "scheme.adversaries: 4 needs at least 9 workers, got ",
        "epochs: must be left out beside steps, got steps 10 and epochs 2",
        "data.augment: mnist has no augmentation: must be false or left out",
        "batch_size: must be at most the 60000 training samples of mnist, got 100000",
    ]
    for start in starts:
        assert sum(fault.startswith(start) for fault in got) == 1, start
    assert len(got) == len(starts)


def test_checks_across_fields_say_nothing_about_a_field_that_is_itself_at_fault() -> None:
    assert [fault.split(":")[0] for fault in faults(GOOD, "workers=-1", "scheme.adversaries=3")] == ["workers"]
    assert [fault.split(":")[0] for fault in faults(GOOD, "scheme.name=cyclc", "scheme.vote=exact")] == ["scheme.name"]
    assert [fault.split(":")[0] for fault in faults(GOOD, "data=mnits", "batch_size=70000")] == ["data.name"]


def test_every_missing_key_is_named_once_with_what_it_must_be() -> None:
    got = faults("name: small")
    names = [fault.split(":")[0] for fault in got]
    assert sorted(names) == ["batch_size", "data", "model", "scheme", "steps", "workers"]
    assert "workers: is missing; must be a whole number at least 1 and at most 4096" in got


@pytest.mark.parametrize("text", ["", "- a", "just words", "3"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    (fault,) = faults(text)
    assert fault.startswith("must be a mapping with the keys name, workers, model, data, batch_size, scheme, got ")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name: a\nworkers: [1", "line 2: not valid YAML"),
        ("name: a\n\n name: b", "line 3: not valid YAML"),
        ("name: a\n---\nname: b", "line 2: not valid YAML"),
        ("name: !!python/name:os.system x", "line 1: not valid YAML"),
        ("name: \x01", "not valid YAML"),
        ("[" * 1500, "not valid YAML: nested too deeply"),
        ("workers: " + "9" * 5000, "not valid YAML"),
        ("a: &x 1\nb: *x", "line 1: anchor &x: not used in jobs; write the value out"),
        ("a: &x [*x]", "line 1: anchor &x"),
    ],
    ids=["open-list", "indentation", "two-documents", "python-object", "control", "depth", "digits", "alias", "loop"],
)
def test_what_is_not_plain_yaml_is_refused_with_its_line(text: str, fault: str) -> None:
    assert faults(text)[0].startswith(fault)


def test_every_duplicate_key_is_named_with_both_lines_on_every_level() -> None:
    text = GOOD + "steps: 3\noptimizer:\n  lr: 0.1\n  lr: 0.2\n  lr: 0.3\n"
    assert faults(text) == [
        "line 11: steps: duplicate key, first on line 6",
        "line 14: optimizer.lr: duplicate key, first on line 13",
        "line 15: optimizer.lr: duplicate key, first on line 13",
    ]


@pytest.mark.parametrize(
    ("section", "option"),
    [
        (section, option)
        for section, part in SECTIONS.items()
        for option in dict.fromkeys(option for kind in part.kinds.values() for option in kind.model_fields)
        if len(part.having(option)) < len(part.kinds)
    ],
)
def test_an_option_is_refused_beside_every_name_to_which_it_does_not_apply(section: str, option: str) -> None:
    part = SECTIONS[section]
    applies = part.having(option)
    for name in (name for name in part.kinds if name not in applies):
        got = faults(GOOD, f"{section}={{{part.short}: {name}, {option}: 1}}")
        assert f"{section}.{option}: applies to {', '.join(applies)}; {section}.name is {name}: leave it out" in got


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["scheme={name: repetition, adversaries: 1, redundancy: 2}"],
         "scheme.redundancy: must be from 2s+1 = 3 to 9 workers, got 2"),
        (["scheme={name: repetition, adversaries: 1, redundancy: 10}"],
         "scheme.redundancy: must be from 2s+1 = 3 to 9 workers, got 10"),
        (["scheme={name: repetition, adversaries: 5}", "aggregator=krum"],
         "scheme.adversaries: 5 needs at least 11 workers, got 9"),
        (["scheme={name: repetition, adversaries: 1, vote: exact, tolerance: 1e-6}"],
         "scheme.tolerance: applies only with vote: auto or tolerance: leave it out"),
        (["scheme={name: approximate, redundancy: 10}", "attack=none"],
         "scheme.redundancy: must be from 2s+1 = 1 to 9 workers, got 10"),
        (["scheme={name: approximate, code: bernoulli, adversaries: 1}"],
         "scheme.code: must be fractional, or adversaries 0, got 1: bernoulli tolerates no adversaries, as no two of "
         "its workers send the same"),
        (["scheme={name: approximate, stragglers: 9}", "attack=none"],
         "scheme.stragglers: must be from 0 to 8, got 9"),
        (["scheme={name: approximate, inside: 0.5}", "attack=none"],
         "scheme.inside: applies only with code: stochastic_block: leave it out"),
        (["scheme={name: election, redundancy: 3}", "attack=none"],
         "scheme.redundancy: applies only with code: bernoulli: leave it out"),
        (["scheme={name: election, code: fractional}", "attack=none"],
         "scheme.code: must be one of deterministic, bernoulli, or null, got 'fractional'"),
        (["scheme={name: election, adversaries: 1}", "wire=float16"],
         "wire.dtype: election's replies are uint8, which float16 cannot carry: must be float32"),
        (["batch_size=8"], "batch_size: must be at least 9: cyclic cuts it into 9 partitions, got 8"),
        (["batch_size=17", "model=resnet18"],
         "batch_size: must be at least 18: cyclic cuts it into 9 partitions and resnet18's batch norm at least 2 "
         "samples in each, got 17"),
        (["batch_size=60001"], "batch_size: must be at most the 60000 training samples of mnist, got 60001"),
        (["data={name: mnist, split: dirichlet}", "scheme={name: uncoded, adversaries: 1}"],
         "data.alpha: is missing; dirichlet needs a number at least 1e-06 and at most 1000000.0"),
        (["data={name: mnist, split: by_class, alpha: 0.1}", "scheme={name: uncoded, adversaries: 1}"],
         "data.alpha: applies only with split: dirichlet: leave it out"),
        (["data={name: mnist, split: by_class}"],
         "data.split: cyclic encodes gradients of partitions that all workers share: must be iid, or the scheme "
         "uncoded"),
        (["local={momentum: 0.9}"],
         "local.momentum: cyclic encodes gradients of partitions that all workers share: leave it out, or the scheme "
         "must be uncoded"),
        (["local={clip: 1.0}", "scheme={name: repetition, adversaries: 1}"],
         "local.clip: repetition encodes gradients of partitions that all workers share: leave it out, or the scheme "
         "must be uncoded"),
        (["local={momentum: 0.9}", "scheme={name: uncoded, adversaries: 1}", "wire=float16"],
         "wire.dtype: checkpoints keep worker momentum as it was received, and float16 rounds it: must be float32"),
        (["local=momentum"], "local.momentum: must be a number at least 0.0 and below 1.0, got 'momentum'"),
        (["local=3"], "local: must be a mapping with the keys momentum, clip, got 3"),
        (["scheme={name: cyclic_dft, adversaries: 1}", "wire=float16"],
         "wire.dtype: cyclic_dft's replies are complex128, which float16 cannot carry: must be float32"),
        (["scheme.adversaries=0"],
         "attack.adversaries: reverse_gradient needs at least 1 Byzantine worker, got scheme.adversaries = 0"),
        (["attack.adversaries=10"], "attack.adversaries: 10 Byzantine workers need as many workers, got 9"),
        (["attack.ranks=[1, 1]"], "attack.ranks: must be distinct, got [1, 1]"),
        (["attack.ranks=[10]"], "attack.ranks: must be from 1 to 9 workers, got [10]"),
        (["attack.ranks=[1, 2]", "attack.adversaries=3"],
         "attack.ranks: must be attack.adversaries = 3 ranks, got [1, 2]"),
        (["attack.ranks=[1]", "attack.who=drawn"],
         "attack.ranks: are fixed ranks and attack.who is drawn: give one of the two"),
        (["attack={name: adjacent, ranks: [1], who: placed}"],
         "attack.ranks: are fixed ranks and attack.who is placed: give one of the two"),
        (["attack.fraction=0.5", "attack.adversaries=2"],
         "attack.fraction: must be left out beside attack.adversaries"),
        (["attack.fraction=0.5", "attack.ranks=[2]"], "attack.fraction: must be left out beside attack.ranks"),
        (["attack.fraction=0.1"], "attack.fraction: must be at least 1/9, one worker of 9, got 0.1"),
        (["attack.from_step=9", "attack.until_step=8"],
         "attack.until_step: must be at least attack.from_step = 9, got 8"),
        (["attack={name: mimic, fraction: 1.0}"], "attack.name: mimic needs an honest worker, 9 of 9 are Byzantine"),
        (["attack={name: alie, adversaries: 5}"],
         "attack.z: is missing: the formula of alie gives no z for 5 Byzantine workers among 9"),
        (["attack={name: ipm, z: 1.0}"], "attack.z: applies to alie; attack.name is ipm: leave it out"),
        (["attack={name: orthogonal_to_projection, adversaries: 1}", "scheme=uncoded"],
         "attack.name: orthogonal_to_projection hides from the projections of a decoder; uncoded does not project"),
        (["attack={name: tiny, adversaries: 1}", "scheme=uncoded"],
         "attack.name: tiny hides below the tolerance of a code; uncoded has none"),
        *(([f"attack={{name: silent, {option}}}"],
           "attack.name: silent is for good, as a worker that owes an answer gets no task: needs attack.who fixed "
           "and no attack.until_step") for option in ("who: drawn", "until_step: 5")),
        (["steps=null"], "steps: is missing; must be a whole number at least 1, or give epochs"),
        (["epochs=2"], "epochs: must be left out beside steps, got steps 100 and epochs 2"),
        (["optimizer.nesterov=true"], "optimizer.nesterov: needs a momentum above 0, got 0"),
        (["schedule=step"], "schedule.step_size_steps: is missing; must be a whole number at least 1"),
        (["schedule={name: step, step_size_steps: null}"],
         "schedule.step_size_steps: must be a whole number at least 1, got null"),
        (["schedule=multistep"],
         "schedule.milestones: is missing; must be a list, each a whole number at least 1"),
        (["schedule=exponential"],
         "schedule.gamma: is missing; must be a number above 0.0 and at most 1.0"),
        (["schedule={name: multistep, milestones: [20, 10]}"], "schedule.milestones: must increase, got [20, 10]"),
        (["schedule.warmup_steps=100"], "schedule.warmup_steps: must be fewer than the job's 100 steps, got 100"),
        (["data={name: mnist, augment: true}"], "data.augment: mnist has no augmentation: must be false or left out"),
        (["data={name: mnist_5k, source: x}"], "data.source: mnist_5k has no original files to take: leave it out"),
        (["model=vgg11"], "model: vgg11 needs images of at least 32x32 pixels, got 28x28 (mnist)"),
        (["attack.magnitude=.inf"], "attack.magnitude: must be a number above 0.0 and at most 1e+30, got inf"),
        (["workers=9.0"], "workers: must be a whole number at least 1 and at most 4096, got 9.0"),
        (["workers=true"], "workers: must be a whole number at least 1 and at most 4096, got true"),
        (["threads='2'"], "threads: must be a whole number at least 1 and at most 1024, got '2'"),
        (["name=-a"], "name: must be lower-case words and numbers joined by hyphens, at most 80 characters, got '-a'"),
        (["attack=null"],
         f"attack: must be one of {', '.join(ATTACKS)}, or a mapping with the keys name, adversaries, "
         "fraction, who, ranks, from_step, until_step, magnitude, z, epsilon, delay, delay_s, got null"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_does_not_go_together_is_refused_with_the_values_and_the_bounds(overrides: list[str], fault: str) -> None:
    assert faults(GOOD, *overrides) == [fault]


@pytest.mark.parametrize("rule", [name for name in AGGREGATORS if name != "mean"])
@pytest.mark.parametrize("f", [1, 2, 3])
def test_an_aggregator_is_accepted_from_its_least_number_of_gradients_on(rule: str, f: int) -> None:
    least = AGGREGATORS[rule].least(f)
    settings = [f"aggregator={{name: {rule}, f: {f}}}", "scheme=uncoded", "attack=none"]
    assert aggregator_f(good(*settings, f"workers={least}")) == f
    (fault,) = faults(GOOD, *settings, f"workers={least - 1}")
    assert fault == (
        f"aggregator.name: {rule} with f = {f} needs at least {least} gradients, "
        f"uncoded leaves {least - 1} of {least - 1} workers' replies"
    )


def test_a_code_that_cannot_keep_its_precision_is_refused_in_the_words_of_the_scheme() -> None:
    (fault,) = faults(GOOD, "scheme={name: cyclic, adversaries: 7}", "workers=101")
    assert fault.startswith("scheme.name: cyclic: 7 adversaries among 101 workers ")
    assert "amplify" in fault


def test_an_aggregator_after_a_vote_is_short_of_gradients_though_there_are_workers_enough() -> None:
    (fault,) = faults(GOOD, "scheme.name=repetition", "aggregator={name: krum, f: 1}")
    assert fault.endswith("gradients, repetition leaves 3 of 9 workers' replies")


# --- rules, and what comes before them -------------------------------------------------------------------------------

UNCODED = ("scheme={name: uncoded, adversaries: 2}", "workers=15", "batch_size=180")


def test_pre_aggregators_are_names_or_mappings_and_are_written_out_without_what_does_not_apply() -> None:
    job = good(*UNCODED, "aggregator={name: median, pre: [nnm, {name: bucketing, size: 3}, clipping]}")
    assert [(step.name, step.get("size")) for step in job.aggregator.pre[:2]] == [("nnm", None), ("bucketing", 3)]
    plain = [{"name": "nnm"}, {"name": "bucketing", "size": 3}, {"name": "clipping", "c": 2.0}]
    assert to_dict(job)["aggregator"]["pre"] == plain
    assert parse(to_yaml(job), "again") == job
    assert Job.model_validate(to_dict(job)) == job


@pytest.mark.parametrize(
    ("aggregator", "fault"),
    [
        ("{name: krum, pre: [blur]}", "aggregator.pre: must be a list, each one of nnm, bucketing, clipping, arc, or a "
         "mapping with the keys name, size, c, got ['blur']"),
        ("{name: krum, pre: [{name: nnm, size: 2}]}",
         "aggregator.pre: size applies to bucketing, not to nnm: leave it out"),
        ("{name: krum, pre: [{name: bucketing, size: 3}]}", "aggregator.name: krum with f = 2 needs at least 7 "
         "gradients, uncoded leaves 15 of 15 workers' replies and bucketing 5"),
        ("{name: mean, pre: [{name: bucketing, size: 5}, nnm]}", "aggregator.pre: nnm with f = 2 needs at least 5 "
         "gradients, uncoded leaves 15 of 15 workers' replies and bucketing 3"),
        ("{name: multi_krum, m: 14}", "aggregator.m: must be at most m - f = 13 of m = 15 gradients, got 14"),
        ("{name: krum, neighbours: 13}",
         "aggregator.neighbours: must be at most m - f - 1 = 12 of m = 15 gradients, got 13"),
        ("{name: geometric_median, nu: 0.1, backend: hdmedians}",
         "aggregator.nu: applies only with backend: gram: leave it out"),
        ("{name: monna, pre: [nnm]}", "aggregator.name: monna trusts the gradient of one worker: it needs scheme: "
         "uncoded and nothing in aggregator.pre"),
        ("{name: median_of_means, groups: 4}", "aggregator.groups: must be from 2f + 1 = 5 to m = 15 gradients, got 4"),
        ("{name: monna, trusted: 16}", "aggregator.trusted: must be one of 15 workers, got 16"),
        ("{name: centered_clipping, per_layer: true}", "aggregator.per_layer: applies to median_of_means, "
         "geometric_median, krum, multi_krum, bulyan, mda, smea, caf, cge; aggregator.name is centered_clipping: "
         "leave it out"),
    ],
)  # fmt: skip
def test_what_an_aggregator_cannot_work_with_is_refused(aggregator: str, fault: str) -> None:
    assert faults(GOOD, *UNCODED, f"aggregator={aggregator}") == [fault]


def test_an_eigenvalue_of_every_subset_is_refused_where_there_are_too_many() -> None:
    (fault,) = faults(GOOD, "scheme={name: uncoded, adversaries: 10}", "workers=30", "aggregator=smea")
    assert fault == ("aggregator.name: smea with f = 10 looks at 30045015 subsets of 30 gradients; the most is 100000")


def test_mixing_before_a_mean_needs_an_f() -> None:
    assert aggregator_f(good(*UNCODED, "aggregator={name: mean, pre: [nnm]}")) == 2
    assert warnings(good(*UNCODED, "aggregator={name: mean, pre: [nnm]}", "attack.adversaries=2")) == []


# --- overrides -------------------------------------------------------------------------------------------------------


def test_overrides_are_yaml_values_applied_in_order_over_file_and_shorthand() -> None:
    job = good("attack.magnitude=2.5", "steps=7", "steps=8", "attack.ranks=[3]", "optimizer.lr=1e-3")
    assert (job.attack.name, job.attack.magnitude, job.attack.ranks) == ("reverse_gradient", 2.5, (3,))
    assert (job.steps, job.optimizer.lr) == (8, 1e-3)


def test_null_takes_an_option_back() -> None:
    job = good("steps=null", "epochs=2")
    assert (job.steps, job.epochs) == (None, 2)


def test_a_whole_section_is_replaced_and_not_mixed_with_the_old_one() -> None:
    assert good("scheme=uncoded", "attack=none").scheme.adversaries == 0


@pytest.mark.parametrize("override", ["steps", "=3", ".=3", "scheme.=3", "", "scheme..name=cyclic"])
def test_a_malformed_override_is_named(override: str) -> None:
    (fault,) = faults(GOOD, override)
    assert fault.startswith(f"--set {override}: must look like key=value")


@pytest.mark.parametrize("override", ["workers.x=1", "attack.ranks.x=1", "a.b.c=1"])
def test_an_override_below_a_value_is_an_unknown_key(override: str) -> None:
    (fault,) = faults(GOOD, override)
    assert fault.startswith(f"--set {override}: unknown key {override.split('=')[0]}; ")


def test_an_override_with_a_value_that_is_no_yaml_is_named() -> None:
    assert faults(GOOD, "steps=[")[0].startswith("--set steps=[: not valid YAML: ")


# --- what follows from a job -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["attack=none"], 0),
        ([], 1),
        (["attack.adversaries=4"], 4),
        (["attack.ranks=[2, 5, 7]"], 3),
        (["attack.ranks=[2, 5]", "attack.adversaries=2"], 2),
        (["attack.fraction=0.34"], 3),
        (["attack.fraction=0.29", "workers=100", "batch_size=200"], 29),
    ],
)
def test_byzantine_workers_are_counted_by_attack_then_fraction_then_ranks_then_scheme(
    overrides: list[str], count: int
) -> None:
    assert byzantine_count(good(*overrides)) == count


@pytest.mark.parametrize(
    ("overrides", "f"),
    [
        (["scheme={name: uncoded, adversaries: 2}", "aggregator=krum"], 2),
        (["scheme={name: uncoded, adversaries: 2}", "aggregator={name: krum, f: 1}"], 1),
        (["scheme={name: uncoded, adversaries: 2}", "aggregator=mean"], 0),
        (["scheme={name: repetition, adversaries: 1}", "aggregator=median"], 0),
        (["scheme={name: repetition, adversaries: 1}", "aggregator={name: median, f: 1}"], 1),
        (["scheme={name: detox, adversaries: 3}", "workers=9", "aggregator=median"], 1),
        (["scheme={name: detox, adversaries: 5}", "workers=15", "aggregator=median"], 2),
        (["scheme={name: detox, adversaries: 5, redundancy: 5}", "workers=15", "aggregator=median"], 1),
    ],
)
def test_the_aggregator_tolerates_the_schemes_adversaries_only_where_no_code_took_them_out(
    overrides: list[str], f: int
) -> None:
    assert aggregator_f(good(*overrides)) == f


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [(["steps=12"], 12), (["steps=null", "epochs=1"], 6), (["steps=null", "epochs=3"], 17)],
)
def test_epochs_are_turned_into_steps_so_that_no_sample_is_left_out(overrides: list[str], steps: int) -> None:
    assert total_steps(good(*overrides, "batch_size=180"), 1000) == steps


@pytest.mark.parametrize("workers", [5, 8, 9, 11])
@pytest.mark.parametrize("scheme", CODES)
def test_partitions_and_decoded_gradients_are_those_of_the_scheme_that_is_built(scheme: str, workers: int) -> None:
    if scheme == "placement":
        workers = {5: 12, 8: 15, 9: 21, 11: 24}[workers]  # for which there is a design
    job = good(f"scheme.name={scheme}", f"workers={workers}")
    built = build(scheme, workers=workers, adversaries=1)
    assert sizes(job).partitions == built.assignment.shape[1]
    gradients = torch.ones(built.assignment.shape[1], 4)
    replies = [built.encode(row, gradients[built.assignment[row]]) for row in range(workers)]
    assert sizes(job).gradients == len(built.decode(torch.stack(replies)).gradients)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["attack.adversaries=2"], "2 workers are Byzantine but cyclic is built for 1"),
        (["attack=alie"], "alie's formula gives z = 0 for 1 Byzantine workers among 9"),
        (["scheme={name: uncoded, adversaries: 1}"], "nothing defends"),
        (
            ["scheme={name: uncoded, adversaries: 1}", "aggregator=krum", "attack.adversaries=2"],
            "set to tolerate f = 1",
        ),
        (["aggregator=median"], "median has nothing to choose from"),
        (["schedule={name: multistep, milestones: [50, 100]}"], "beyond the last step, 100"),
    ],
)
def test_what_is_allowed_but_perhaps_not_meant_gives_one_warning(overrides: list[str], words: str) -> None:
    (warning,) = warnings(good(*overrides))
    assert words in warning


@pytest.mark.parametrize(
    "overrides", [[], ["attack=none"], ["scheme={name: uncoded, adversaries: 1}", "aggregator=krum"]]
)
def test_a_sensible_job_gives_no_warning(overrides: list[str]) -> None:
    assert warnings(good(*overrides)) == []


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "none"])
def test_every_attack_has_defaults_that_survive_writing(name: str) -> None:
    job = good(f"attack={name}")
    assert parse(to_yaml(job), "again") == job
    assert job.attack.who == ("placed" if name in ("adjacent", "split_vote", "whole_group") else "fixed")
    assert good(f"attack={{name: {name}, ranks: [2]}}").attack.who == "fixed"


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """Return the plain values of a job that is right."""
    workers = draw(st.integers(5, 60))
    s = draw(st.integers(1, 2))
    scheme: dict[str, Any] = {"name": draw(st.sampled_from(sorted(SCHEMES))), "adversaries": s}
    if scheme["name"] == "repetition":
        scheme |= {"redundancy": draw(st.none() | st.integers(2 * s + 1, workers))}
        scheme |= {"vote": draw(st.sampled_from(["auto", "exact", "tolerance"]))}
    elif scheme["name"] == "detox":
        scheme |= {"adversaries": 1}  # two may spoil one of two groups
    elif scheme["name"] == "solon":
        workers = max(workers, 2 * s + 2)
    elif scheme["name"] == "placement":
        workers = draw(st.sampled_from([12, 15, 21, 24]))
    name = draw(st.sampled_from(["sgd", "adam", "adamw"]))
    optimizer: dict[str, Any] = {
        "name": name,
        "lr": draw(st.floats(1e-9, 100.0)),
        "weight_decay": draw(st.floats(0, 1)),
    }
    if name == "sgd":
        optimizer |= {"momentum": draw(st.floats(0.01, 0.99)), "nesterov": draw(st.booleans())}
    else:
        optimizer |= {"betas": [draw(st.floats(0, 0.99)), 0.999], "eps": draw(st.floats(1e-12, 1e-3))}
    attack: dict[str, Any] = {"name": draw(st.sampled_from(["reverse_gradient", "constant", "random"]))}
    attack |= {"magnitude": draw(st.floats(1e-20, 1e20)), "ranks": draw(st.none() | st.just([1, workers]))}
    schedules = [
        {"name": "constant", "warmup_steps": draw(st.integers(0, 9))},
        {"name": "multistep", "milestones": [3, 700], "gamma": draw(st.floats(1e-3, 1))},
        {"name": "step", "step_size_steps": draw(st.integers(1, 10**9))},
        {"name": "cosine", "eta_min": draw(st.floats(0, 1))},
    ]
    length = draw(st.sampled_from([{"steps": 10}, {"epochs": 3}, {"steps": 10**9}]))
    return length | {
        "name": draw(st.from_regex(r"[a-z0-9]{1,9}(-[a-z0-9]{1,9}){0,3}", fullmatch=True)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "workers": workers,
        "launcher": draw(st.sampled_from(["mpi", "simulate"])),
        "model": draw(st.sampled_from(["lenet", "fc"])),
        "data": {
            "name": "mnist",
            "root": draw(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)),
        },
        "batch_size": draw(st.integers(120, 4000)),
        "scheme": scheme,
        "attack": attack,
        "optimizer": optimizer,
        "schedule": draw(st.sampled_from(schedules)),
        "reply_timeout_s": draw(st.floats(1e-3, 86400)),
    }


@given(jobs())
@settings(deadline=None, max_examples=50)
def test_a_job_written_as_yaml_is_read_back_the_same(values: dict[str, Any]) -> None:
    job = parse(json.dumps(values, ensure_ascii=False), "test")
    text = to_yaml(job)
    again = parse(text, "test")
    assert again == job
    assert to_yaml(again) == text
    for key, value in values.items():
        written = to_dict(job)[key]
        assert {**written, **value} == written if isinstance(value, dict) else written == value


KEYS = st.sampled_from([*Job.model_fields, "name", "lr", "x", "adversaries", "vote", "ranks", "betas", "milestones"])
ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(
    ["cyclic", "repetition", "krum", "mnist", "adam", "lenet", "sgd", "multistep", "constant", "none"]
)  # fmt: skip
TREES = st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5))


@given(st.dictionaries(KEYS, TREES, max_size=12), st.lists(st.text(max_size=12), max_size=2))
@settings(deadline=None, max_examples=100)
def test_any_mapping_gives_a_job_or_faults_and_never_another_error(tree: dict[str, Any], overrides: list[str]) -> None:
    whole = {"name": "a", "workers": 9, "model": "lenet", "data": "mnist", "batch_size": 90, "scheme": "cyclic"} | tree
    outcome: Job | JobError
    try:
        outcome = parse(json.dumps(whole), "x", overrides)
    except JobError as error:  # any other error fails the test
        outcome = error
    assert outcome.faults if isinstance(outcome, JobError) else parse(to_yaml(outcome), "x") == outcome


def test_options_that_do_not_apply_are_not_written() -> None:
    assert set(to_dict(good())["scheme"]) == {"name", "adversaries", "redundancy", "tolerance", "encoding"}
    assert set(to_dict(good("attack=none"))["attack"]) == {"name"}
    assert set(to_dict(good("on_loss=fail"))["on_loss"]) == {"name"}
    assert set(to_dict(good("optimizer=adam"))["optimizer"]) == {"name", "lr", "weight_decay", "betas", "eps"}


# --- schema and tables -----------------------------------------------------------------------------------------------


def resolved(part: Any, definitions: dict[str, Any]) -> Any:
    """Return a part of the schema with every option that is written once put where it is referred to."""
    match part:
        case {"$ref": str(path)} if "." in path:
            return resolved(definitions[path.removeprefix("#/$defs/")], definitions)
        case dict():
            return {key: resolved(value, definitions) for key, value in part.items()}
        case list():
            return [resolved(value, definitions) for value in part]
    return part


def test_every_key_of_the_schema_says_what_it_is() -> None:
    whole = schema()
    parts = {"": whole, **{name: part for name, part in whole["$defs"].items() if "." not in name}}
    undescribed = [
        f"{part}.{key}"
        for part in parts
        for key, field in parts[part]["properties"].items()
        if not resolved(field, whole["$defs"])["description"]
    ]
    assert undescribed == []
    assert all(part["additionalProperties"] is False for part in parts.values())


def test_an_option_that_many_names_have_is_written_once_with_what_the_section_declares() -> None:
    definitions = schema()["$defs"]
    for key, part in {**SECTIONS, "aggregator.pre": PRE_AGGREGATOR}.items():
        for name, kind in part.kinds.items():
            for option, shown in definitions[kind.__name__]["properties"].items():
                declared = properties(kind)[option]
                if option != "pre":  # which the schema shortens
                    assert resolved(shown, definitions).get("default") == declared.get("default"), (key, name, option)
                    assert resolved(shown, definitions)["description"] == declared["description"], (key, name, option)
    assert definitions["attack_zero"]["properties"]["ranks"] == {"$ref": "#/$defs/attack.ranks"}


def test_the_schema_ties_an_option_to_the_options_with_which_it_applies_and_has_no_empty_rules() -> None:
    parts = schema()["$defs"]
    assert {name for name in SCHEMES if "vote" in parts[f"scheme_{name}"]["properties"]} == {
        name for name, scheme in SCHEMES.items() if "vote" in scheme.options
    }
    inside = {
        "if": {"required": ["inside"]},
        "then": {"properties": {"code": {"enum": ["stochastic_block"]}}, "required": ["code"]},
    }
    tolerance = {
        "if": {"required": ["tolerance"]},
        "then": {"properties": {"vote": {"enum": ["auto", "tolerance"]}}},
    }
    assert parts["scheme_approximate"]["allOf"] == [inside, tolerance]
    assert all(part.get("allOf") != [] for part in parts.values())


def test_faults_of_own_samples_and_own_momentum_are_told_at_once() -> None:
    own = ["data={name: mnist, split: dirichlet}", "local={momentum: 0.9, clip: 1.0}", "wire=bfloat16"]
    paths = ["data.alpha", "data.split", "local.momentum", "local.clip", "wire.dtype"]
    assert [fault.split(":")[0] for fault in faults(GOOD, *own)] == paths


def test_momentum_at_both_ends_is_warned_of() -> None:
    job = ["scheme=uncoded", "attack=none", "local={momentum: 0.9}"]
    assert warnings(good(*job)) == []
    assert warnings(good(*job, "optimizer.momentum=0.9")) == [
        "local.momentum: optimizer.momentum averages over steps once more, at the server"
    ]


def test_the_schema_accepts_a_section_by_its_name() -> None:
    assert schema()["properties"]["scheme"]["anyOf"][0] == {"enum": [*SCHEMES]}


def test_the_names_in_the_spec_are_those_in_the_tables() -> None:
    tables = {"scheme": SCHEMES, "aggregator": AGGREGATORS, "attack": ATTACKS}
    assert {key: list(SECTIONS[key].kinds) for key in tables} == {key: list(table) for key, table in tables.items()}
    properties = schema()["properties"]
    assert choices(properties["model"]) == list(MODELS)
    assert properties["data"]["anyOf"][0]["enum"] == list(DATASETS)


def test_the_originals_options_point_to_keys_that_exist() -> None:
    for path in ORIGINAL_OPTIONS.values():
        section, _, key = path.rpartition(".")
        kinds = SECTIONS[section].kinds.values() if section else [Job]
        assert any(key in kind.model_fields for kind in kinds)


def test_reading_and_checking_a_job_loads_neither_torch_nor_mpi4py() -> None:
    code = (
        f"import sys; from draco.job import parse, warnings; warnings(parse({GOOD!r}, 'x')); "
        "print(*{'torch._C', 'mpi4py', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((), "cyclic s=1, 9 workers; reverse_gradient"),
        (("attack=none", "scheme.adversaries=0"), "cyclic s=0, 9 workers; no attack"),
        (("scheme={name: uncoded, adversaries: 2}",), "uncoded s=2, mean, 9 workers; reverse_gradient"),
        (
            (*UNCODED, "aggregator={name: krum, neighbours: 3, pre: [nnm, {name: bucketing, size: 1}]}"),
            "uncoded s=2, nnm, bucketing (size=1), krum (neighbours=3), 15 workers; reverse_gradient",
        ),
        (
            ("scheme=repetition", "scheme.redundancy=5", "attack={name: constant, magnitude: 3.0, ranks: [3, 4]}"),
            "repetition s=0 (redundancy=5), 9 workers; constant (ranks=[3, 4] magnitude=3.0)",
        ),
        (
            (*UNCODED, "data={name: mnist, split: dirichlet, alpha: 0.1}", "local={momentum: 0.9}"),
            "uncoded s=2, mean, 15 workers, split=dirichlet, alpha=0.1, momentum=0.9; reverse_gradient",
        ),
        (("wire=float16", "attack=adjacent"), "cyclic s=1, 9 workers, dtype=float16; adjacent"),
        (("attack={name: adjacent, who: drawn}",), "cyclic s=1, 9 workers; adjacent (who=drawn)"),
    ],
)
def test_a_line_says_what_a_job_sets_against_what(overrides: tuple[str, ...], words: str) -> None:
    assert to_words(good(*overrides)) == words
