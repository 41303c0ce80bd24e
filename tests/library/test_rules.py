"""The classes of rules: one an entry of the tables, options checked when made, kinds in and out; byzfl beside them."""

import importlib.util
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aggregator_twins import rows_of
from torch import Tensor

import draco
from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS
from draco.rules.rule import PreRule, Rule

PUBLIC = [getattr(draco, name) for name in draco.__all__]
CLASSES = [each for each in PUBLIC if isinstance(each, type) and issubclass(each, Rule | PreRule)]
CLASSES = [each for each in CLASSES if each not in (Rule, PreRule)]
every = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def made(kind: Any, f: int = 1, **options: Any) -> Any:
    drawn = {"generator": torch.Generator().manual_seed(3)} if kind is draco.Bucketing else {}
    return kind(f, **drawn, **options)


def by_name(kind: Any, gradients: Any) -> Tensor:
    drawn = {"generator": torch.Generator().manual_seed(3)} if kind is draco.Bucketing else {}
    found: Tensor = kind.declaration(gradients, f=1, **drawn)
    return found


def test_every_entry_of_the_tables_has_its_class_and_its_public_name() -> None:
    named = {kind.declaration.name: kind.__name__ for kind in CLASSES}
    assert named.keys() == {*AGGREGATORS, *PRE_AGGREGATORS}
    assert {name: public.lower() for name, public in named.items()} == {name: name.replace("_", "") for name in named}


@every
def test_a_class_takes_the_options_of_its_declaration_with_their_defaults(kind: Any) -> None:
    taken = dict(inspect.signature(kind).parameters)
    assert (taken.pop("f").default, next(iter(inspect.signature(kind).parameters))) == (0, "f")
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in taken.values())
    declared = {name: option.default for name, option in kind.declaration.options.items() if option.argument}
    beside = {"centre", "reference", "generator"}
    assert {name: p.default for name, p in taken.items() if name not in beside} == declared


@every
def test_what_comes_out_is_of_the_kind_that_went_in(kind: Any) -> None:
    rows = rows_of(11, 6)
    expected = by_name(kind, rows)
    for given in (rows, list(rows), tuple(rows), rows.double(), rows.clone().requires_grad_()):
        found = made(kind)(given)
        assert isinstance(found, Tensor)
        torch.testing.assert_close(found, expected, check_dtype=False)
    assert made(kind)(rows.double()).dtype == torch.float64
    for given in (rows.numpy(), list(rows.numpy()), rows.double().numpy(), rows.round().int().numpy()):
        found = made(kind)(given)
        assert isinstance(found, np.ndarray)
        assert found.dtype == (np.float32 if np.asarray(given).dtype == np.float32 else np.float64)
    np.testing.assert_allclose(made(kind)(rows.numpy()), expected, rtol=1e-6)
    found = made(kind)(rows.tolist())
    assert isinstance(found, list)
    assert {type(number) for number in np.ravel(np.array(found, object))} == {float}
    torch.testing.assert_close(torch.tensor(found), expected)


@every
def test_the_gradients_are_not_changed_and_do_not_share_memory_with_the_result(kind: Any) -> None:
    array = rows_of(11, 6).numpy()
    before = array.copy()
    found = made(kind)(array)
    found[:] = 7
    np.testing.assert_array_equal(array, before)


@every
def test_f_and_options_are_judged_before_any_gradient(kind: Any) -> None:
    name = kind.declaration.name
    for f, words in (
        (-1, "f = -1; it must be 0 or more"),
        (1.5, "f must be a whole number"),
        (True, "f must be a whole"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: {words}"):
            made(kind, f)
    for option, declared in kind.declaration.options.items():
        if declared.argument:
            wrong = "other" if isinstance(declared.default, str) else -1
            with pytest.raises(ValueError, match=f"^{name}: {option} must be "):
                made(kind, **{option: wrong})
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        made(kind, colour=1)


@every
def test_too_few_gradients_are_refused_in_the_words_of_the_rule(kind: Any) -> None:
    rule = made(kind, 3)
    words = f"^{kind.declaration.name}: f = 3 needs at least {rule.least()} gradients, got "
    with pytest.raises(ValueError, match=words):
        rule(rows_of(rule.least(), 6)[: rule.least() - 1])
    assert len(made(kind, 3)(rows_of(rule.least(), 6)))


def test_objects_say_what_they_are_and_travel() -> None:
    assert repr(draco.Krum(2)) == "Krum(f=2)"
    assert repr(draco.MultiKrum(f=2, m=3)) == "MultiKrum(f=2, m=3)"
    rule = pickle.loads(pickle.dumps(draco.Krum(2, neighbours=3)))
    assert (rule.f, rule.options) == (2, {"neighbours": 3})


def test_references_are_judged_when_they_are_given() -> None:
    rows = rows_of(11, 6)
    assert torch.equal(draco.MoNNA(1, reference=rows[2])(rows), draco.MoNNA(1, reference=2)(rows))
    with pytest.raises(ValueError, match=r"monna: reference must be a whole number, got 1\.5"):
        draco.MoNNA(reference=1.5)
    with pytest.raises(ValueError, match="monna: reference = -1; it must be 0 or more"):
        draco.MoNNA(reference=-1)
    with pytest.raises(ValueError, match="bucketing: draws at random and needs a generator"):
        draco.Bucketing(generator=None)  # type: ignore[arg-type]


def test_aggregate_takes_names_options_and_pre_aggregators() -> None:
    rows = rows_of(11, 6)
    assert torch.equal(draco.aggregate(rows, "multi_krum", f=2, m=3), draco.MultiKrum(2, m=3)(rows))
    expected = draco.aggregate(rows, "median", f=2, pre=[("nnm", {}), ("clipping", {"c": 2.0})])
    assert torch.equal(draco.aggregate(rows, "median", f=2, pre=["nnm", ("clipping", {"c": 2.0})]), expected)
    assert isinstance(draco.aggregate(rows.numpy(), "median", f=2, pre=["nnm"]), np.ndarray)
    with pytest.raises(ValueError, match="aggregator 'krumm' is not one of mean, "):
        draco.aggregate(rows, "krumm")
    with pytest.raises(ValueError, match="pre-aggregator 'nm' is not one of nnm, "):
        draco.aggregate(rows, "krum", pre=["nm"])
    for given in ({"a": rows}, [{"a": rows[0]}], [list(rows), list(rows[:, :2])]):
        with pytest.raises(ValueError, match=r"^median: gradients are a (dict|list)"):
            draco.aggregate(given, "median")  # type: ignore[call-overload]


def test_aggregate_takes_the_path_of_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first_row.py").write_text("def first_row(gradients, *, keep=0):\n    return gradients[keep].clone()\n")
    monkeypatch.chdir(tmp_path)
    array = rows_of(11, 6).numpy()
    np.testing.assert_array_equal(draco.aggregate(array, "first_row.py:first_row", keep=3), array[3])
    with pytest.raises(draco.DracoError, match=r"first_row\.py has no last_row; it defines first_row"):
        draco.aggregate(array, "first_row.py:last_row")


# byzfl's object and ours for n rows of which f are Byzantine; docs/library.md has the table.
Pair = Callable[[Any, int, int], tuple[Any, Any]]
SAME: dict[str, Pair] = {
    "Average": lambda b, n, f: (b.Average(), draco.Mean()),
    "Median": lambda b, n, f: (b.Median(), draco.Median(f)),
    "TrMean": lambda b, n, f: (b.TrMean(f), draco.TrimmedMean(f)),
    "Meamed": lambda b, n, f: (b.Meamed(f), draco.Meamed(f)),
    "GeometricMedian": lambda b, n, f: (b.GeometricMedian(nu=0.1, T=500), draco.GeometricMedian(f, nu=0.1)),
    "Krum": lambda b, n, f: (b.Krum(f), draco.Krum(f, neighbours=n - f - 1)),
    "MultiKrum": lambda b, n, f: (b.MultiKrum(f), draco.MultiKrum(f, neighbours=n - f - 1)),
    "CenteredClipping": lambda b, n, f: (
        b.CenteredClipping(L=3, tau=2.0), draco.CenteredClipping(f, iterations=3, tau=2.0)
    ),
    "MDA": lambda b, n, f: (b.MDA(f), draco.MDA(f)),
    "MoNNA": lambda b, n, f: (b.MoNNA(f, 3), draco.MoNNA(f, reference=3)),
    "NNM": lambda b, n, f: (b.NNM(f), draco.NNM(f)),
    "Clipping": lambda b, n, f: (b.Clipping(2.0), draco.Clipping(f, c=2.0)),
    "ARC": lambda b, n, f: (b.ARC(f), draco.ARC(f)),
}  # fmt: skip
OTHERWISE = {"SMEA", "CAF", "Bucketing"}
byzfl = pytest.mark.skipif(importlib.util.find_spec("byzfl") is None, reason="byzfl is not installed here")


@byzfl
@pytest.mark.parametrize("name", SAME)
def test_byzfls_objects_give_the_same(name: str) -> None:
    from benchmarks import peers

    theirs = peers.load("byzfl.aggregators")
    for n in (10, 11):
        for f in (0, 2):
            rows = rows_of(n, 40)
            for given in (rows, rows.numpy(), list(rows), list(rows.numpy())):
                b, ours = SAME[name](theirs, n, f)
                expected = b([row.copy() if isinstance(row, np.ndarray) else row.clone() for row in given])
                found = ours(given)
                assert type(found) is type(expected)
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@byzfl
def test_all_of_byzfls_aggregators_are_accounted_for_and_the_page_tells_of_each() -> None:
    from benchmarks import peers

    found = {name for name, kind in vars(peers.load("byzfl.aggregators")).items() if isinstance(kind, type)}
    assert found == SAME.keys() | OTHERWISE
    page = (Path(__file__).parents[2] / "docs/library.md").read_text().partition("## Coming from byzfl")[2]
    assert [name for name in found if f"`{name}(" not in page] == []


@byzfl
def test_where_byzfls_results_differ_as_the_page_says() -> None:
    from benchmarks import peers

    theirs = peers.load("byzfl.aggregators")
    tried = [rows_of(10, 40, seed) for seed in range(20)]
    # n - f - 1 distances, not n - f - 2: now and then another row is selected.
    assert 1 <= sum(not np.allclose(theirs.MultiKrum(2)(rows), draco.MultiKrum(2)(rows)) for rows in tried) < 20
    rows = tried[0]
    assert not np.allclose(theirs.GeometricMedian()(rows), draco.GeometricMedian(2, nu=0.1)(rows), atol=1e-5)
    assert theirs.Krum(2)(rows.double()).dtype == torch.float32
    assert theirs.Krum(4)(rows).shape == (40,)
    with pytest.raises(ValueError, match="krum: f = 4 needs at least 11 gradients, got 10"):
        draco.Krum(4)(rows)
    with pytest.raises(TypeError):
        theirs.Krum(2)(rows.tolist())
    rows[0] = float("nan")
    assert theirs.Median()(rows).isnan().all()
    assert draco.Median(2)(rows).isfinite().all()
