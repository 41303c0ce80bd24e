"""Declarations of rules and pre-aggregators against what their functions do."""

import inspect
import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from aggregator_twins import rows_of
from torch import Tensor

from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS, per_layer
from draco.aggregators.gram import precise_gram
from draco.aggregators.rule import PreAggregatorDeclaration, RowsDeclaration, RuleDeclaration
from draco.declaration import Option

ALL: list[RowsDeclaration] = [*AGGREGATORS.values(), *PRE_AGGREGATORS.values()]
every = pytest.mark.parametrize("declared", ALL, ids=lambda declared: declared.name)
every_rule = pytest.mark.parametrize("rule", [*AGGREGATORS.values()], ids=lambda rule: rule.name)
every_pre = pytest.mark.parametrize("pre", [*PRE_AGGREGATORS.values()], ids=lambda pre: pre.name)

# What a function is given beside its options, and how far an iteration goes, which jobs leave alone.
GIVEN = {"gradients", "f", "generator", "centre", "reference", "overwrite"} | {"tol", "max_iterations"}


def call(declared: RowsDeclaration, gradients: Tensor, **options: Any) -> Tensor:
    """Call a rule or a pre-aggregator, with a generator where it draws."""
    if isinstance(declared, PreAggregatorDeclaration) and declared.draws:
        options["generator"] = torch.Generator().manual_seed(3)
    result: Tensor = declared(gradients, **options)
    return result


def refusal(declared: RowsDeclaration, n: int, f: int, options: dict[str, Any]) -> str | None:
    """Return the words with which n rows and the options are refused, if they are."""
    try:
        call(declared, rows_of(n, 6), f=f, **options)
    except ValueError as error:
        return str(error)
    return None


def test_tables_have_their_declarations_under_their_names() -> None:
    for table in (AGGREGATORS, PRE_AGGREGATORS):
        assert [declared.name for declared in table.values()] == list(table)
    assert not AGGREGATORS.keys() & PRE_AGGREGATORS.keys()


def test_declarations_load_no_torch() -> None:
    asked = "import sys, draco.aggregators; print('torch._C' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", asked], text=True) == "False\n"


@every
@pytest.mark.parametrize("f", range(4))
def test_the_least_number_of_rows_is_taken_and_one_less_is_refused(declared: RowsDeclaration, f: int) -> None:
    least = declared.least(f)
    assert refusal(declared, least, f, {}) is None
    words = f"{declared.name}: f = {f} needs at least {least} gradients, got {least - 1}"
    assert least == 1 or refusal(declared, least - 1, f, {}) == words


@every
def test_options_are_the_parameters_with_the_same_defaults(declared: RowsDeclaration) -> None:
    parameters = inspect.signature(declared.function).parameters
    options = {name: option.default for name, option in declared.options.items() if option.argument}
    assert {name: p.default for name, p in parameters.items() if name not in GIVEN} == options
    assert declared.text
    assert all(option.text.endswith(".") for option in declared.options.values())


def outside(option: Option) -> Iterator[Any]:
    """Yield values just outside of an option's bounds, and one that is no choice."""
    for bound, limit in option.bounds.items():
        yield {"ge": limit - 1, "gt": limit, "le": 2 * limit, "lt": limit}[bound]
    if not option.bounds:
        yield "magic"
    elif isinstance(option.default, float):
        yield from (math.nan, math.inf)


@every
def test_values_out_of_bounds_are_refused_with_the_option_and_the_value(declared: RowsDeclaration) -> None:
    for name, option in declared.options.items():
        for value in outside(option) if option.argument else ():
            words = refusal(declared, 11, 1, {name: value})
            assert words is not None, (name, value)
            assert words.startswith(f"{declared.name}: {name} must be "), words
            assert words.endswith(f"got {value!r}"), words


@every
def test_an_option_that_needs_another_is_refused_without_it(declared: RowsDeclaration) -> None:
    for name, option in declared.options.items():
        if option.only_with is None:
            continue
        other, values = option.only_with
        rest = {"gram", "hdmedians"} - {*values}
        assert rest
        for value in rest:
            assert refusal(declared, 9, 1, {other: value}) is None
            assert refusal(declared, 9, 1, {other: value, name: 0.5}) == (
                f"{declared.name}: {name} must be {option.default} with {other} {value}, got 0.5"
            )


@every
@pytest.mark.parametrize(("f", "more"), [*itertools.product((0, 1, 3), (0, 4))])
def test_faults_are_what_the_function_refuses(declared: RowsDeclaration, f: int, more: int) -> None:
    n = declared.least(f) + more
    edges = {1, 2, 2 * f, 2 * f + 1, n - f - 1, n - f, n - f + 1, n, n + 1}
    counts = [name for name, option in declared.options.items() if option.kind == int | None]
    for given in [{}, *({name: value} for name in counts for value in sorted(edges) if value >= 1)]:
        found = [f"{declared.name}: {option} {message}" for option, message in declared.faults(n, f, given)]
        words = refusal(declared, n, f, given)
        assert found == ([] if words is None else [words])


def test_too_many_subsets_are_a_fault_of_the_name_and_refused_in_the_same_words() -> None:
    ((option, message),) = AGGREGATORS["smea"].faults(30, 10, {})
    assert (option, message) == ("name", refusal(AGGREGATORS["smea"], 30, 10, {}))


@every_rule
def test_a_rule_looks_at_rows_or_coordinates_as_it_declares(rule: RuleDeclaration) -> None:
    gradients = rows_of(11, 40, common=1.0) * torch.linspace(0.5, 2, 11)[:, None]
    options = {"tau": 3.0} if rule.remembers else {}
    whole = rule(gradients, f=1, **options)
    by_column = per_layer(rule, [(i, i + 1) for i in range(40)])(gradients, f=1, **options)
    same = bool((whole - by_column).norm() <= 1e-6 * whole.norm())
    assert same == rule.by_coordinate
    assert [rule.by_coordinate, rule.whole_rows, rule.remembers, rule.trusts].count(True) == 1


@every_rule
def test_a_rule_takes_what_it_declares(rule: RuleDeclaration) -> None:
    parameters = inspect.signature(rule.function).parameters
    assert rule.remembers == ("centre" in parameters)
    assert rule.trusts == ("reference" in parameters) == ("trusted" in rule.options)
    gradients = rows_of(9, 30)
    gradients[3, 0] = math.nan
    assert rule.robust == bool(torch.isfinite(rule(gradients, f=1)).all())


@every_rule
def test_a_weighing_gives_the_rule_on_the_rows(rule: RuleDeclaration) -> None:
    if rule.weighing is None:
        return
    gradients = rows_of(11, 40, common=1.0)
    weights, _ = rule.weighing(11, 2)(precise_gram(gradients, list(range(11))), 2, True)
    np.testing.assert_allclose(weights @ gradients.double().numpy(), rule(gradients, f=2), rtol=1e-4, atol=1e-5)


@every_pre
@pytest.mark.parametrize("lost", [0, 2])
def test_as_many_rows_remain_as_declared(pre: PreAggregatorDeclaration, lost: int) -> None:
    gradients = rows_of(11, 30)
    gradients[:lost] = math.nan
    for options in [{}, *({"size": size} for size in (1, 2, 3, 11, 50) if "size" in pre.options)]:
        assert len(call(pre, gradients, f=2, **options)) == pre.remaining(11 - lost, options)


@every_pre
def test_a_pre_aggregator_draws_mixes_and_compares_as_it_declares(pre: PreAggregatorDeclaration) -> None:
    assert pre.draws == ("generator" in inspect.signature(pre.function).parameters)
    if pre.mixing is None:
        assert not pre.compares
        return
    gradients = rows_of(11, 40, common=1.0)
    mixing = pre.mixing(11, torch.Generator().manual_seed(3) if pre.draws else None)
    weights, _ = mixing(precise_gram(gradients, list(range(11))), 2)
    np.testing.assert_allclose(weights @ gradients.double().numpy(), call(pre, gradients, f=2), rtol=1e-4, atol=1e-5)
    others, _ = mixing(precise_gram(rows_of(11, 40, seed=1), list(range(11))), 2)
    assert pre.compares == (not np.array_equal(weights, others))
