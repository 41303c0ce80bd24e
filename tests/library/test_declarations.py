"""Declarations of schemes against what is built, and of all options against the functions that take them."""

import inspect
import itertools
import subprocess
import sys

import pytest
import torch

from draco.optimizers import OPTIMIZERS, SCHEDULES
from draco.schemes import CODES, Scheme, SchemeDeclaration, build

EVERY = pytest.mark.parametrize("scheme", CODES.values(), ids=CODES)
# Options that decide who computes what, of each scheme that has any.
VARIANTS: dict[str, list[dict[str, object]]] = {
    "repetition": [{}, {"redundancy": 5}],
    "detox": [{}, {"redundancy": 5}],
    "cyclic": [{}, {"redundancy": 5}],
    "placement": [{}, {"design": "ramanujan"}, {"design": "subset"}],
    "approximate": [{}, {"code": "bernoulli", "redundancy": 3}, {"code": "stochastic_block"}, {"stragglers": 2}],
    "election": [{}, {"code": "bernoulli", "redundancy": 3}],
    "solon": [{}, {"parts": 3}],
}


def built(scheme: SchemeDeclaration) -> list[tuple[int, int, dict[str, object], Scheme]]:
    """Return (n, s, options, scheme) for every small n and s for which there is one."""
    found = []
    for n, s, options in itertools.product(range(1, 16), range(4), VARIANTS.get(scheme.name, [{}])):
        try:
            found.append((n, s, options, build(scheme.name, workers=n, adversaries=s, **options)))
        except ValueError:
            with pytest.raises(ValueError, match=scheme.name):
                scheme.sizes(n, s, **options)
    return found


@EVERY
def test_declared_sizes_are_those_of_what_is_built(scheme: SchemeDeclaration) -> None:
    cases = built(scheme)
    assert len({s for _, s, _, _ in cases}) > 1
    for n, s, options, made in cases:
        k, m, bad = scheme.sizes(n, s, **options)
        gradients = torch.ones(made.assignment.shape[1], 40)
        replies = torch.stack([made.encode(row, gradients[made.assignment[row]]) for row in range(n)])
        decoded = made.decode(replies, seed=1)
        assert (k, m, bad) == (made.assignment.shape[1], len(decoded.gradients), made.bad), (n, s, options)


@EVERY
def test_there_is_a_scheme_from_the_declared_least_number_of_workers_on_and_none_below(
    scheme: SchemeDeclaration,
) -> None:
    reached = set()
    for n, s, options, _ in built(scheme):
        assert n >= scheme.least(s, options)
        reached |= {s} if n == max(scheme.least(s, options), 1) else set()
    assert reached
    for s in range(1, 4):
        with pytest.raises(ValueError, match=scheme.name):
            build(scheme.name, workers=scheme.least(s, {}) - 1, adversaries=s)


@EVERY
def test_what_a_scheme_declares_of_its_replies_and_needs_is_so(scheme: SchemeDeclaration) -> None:
    n, _, _, made = next(case for case in reversed(built(scheme)) if not case[2])
    assert str(made.dtype) == f"torch.{scheme.dtype}"
    assert scheme.individual == bool((made.assignment == torch.eye(n, made.assignment.shape[1]).bool().numpy()).all())
    groups = made.groups()
    votes_in_each = groups is not None and len(set(groups)) == made.assignment.shape[1] and not made.bad
    assert scheme.grouped == votes_in_each
    parameters = inspect.signature(scheme.function).parameters
    assert set(scheme.supplied) <= set(parameters)
    assert ("tolerance" in parameters) == (scheme.tolerance > 0)
    if scheme.tolerance:
        assert parameters["tolerance"].default == scheme.tolerance
        assert f"{scheme.tolerance:g}" in scheme.options["tolerance"].text
    if scheme.project:
        assert scheme.project(3, made.elements(70)).shape[1] == made.elements(70)


@EVERY
def test_every_argument_of_a_scheme_is_declared_and_every_declared_one_is_taken(scheme: SchemeDeclaration) -> None:
    parameters = set(inspect.signature(scheme.function).parameters) - {"workers", "adversaries"}
    arguments = {name for name, option in scheme.options.items() if option.argument}
    assert parameters == arguments | set(scheme.supplied)
    for name in arguments - {"vote"}:  # which the trainer decides where it is auto
        default = inspect.signature(scheme.function).parameters[name].default
        assert scheme.options[name].default in (None, default)


@pytest.mark.parametrize("table", [OPTIMIZERS, SCHEDULES], ids=["optimizers", "schedules"])
def test_optimizers_and_schedules_take_what_they_declare(table) -> None:
    given = {"step_size_steps": 3, "milestones": (2, 4), "gamma": 0.5}
    for entry in table.values():
        parameter = torch.nn.Parameter(torch.zeros(3))
        options = {name: given.get(name, option.default) for name, option in entry.options.items()}
        if table is OPTIMIZERS:
            made = entry([parameter], **entry.arguments(options))
            assert made.defaults["lr"] == entry.options["lr"].default
            plain = type(made)([parameter], **({"lr": 0.01} if entry.name == "sgd" else {}))
            assert {name: made.defaults[name] for name in options} == {name: plain.defaults[name] for name in options}
        else:
            optimizer = torch.optim.SGD([parameter], lr=1.0)
            made = entry(optimizer, steps=10, warmup=0, **entry.arguments(options))
            assert made.get_last_lr() == [1.0]


TABLES = ["schemes", "aggregators", "attacks", "optimizers", "models", "data.datasets", "job"]


@pytest.mark.parametrize("module", TABLES)
def test_reading_the_tables_loads_no_torch(module: str) -> None:
    code = f"import sys, draco.{module}; print('torch._C' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
