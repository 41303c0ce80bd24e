"""What rules, pre-aggregators and schemes take as rows and as f, and in which words they refuse the rest."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from aggregator_twins import rows_of
from attacked import gradients_for, honest
from torch import Tensor

from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS, aggregate
from draco.aggregators.rule import PreAggregatorDeclaration, RowsDeclaration
from draco.schemes import CODES, build

ALL: list[RowsDeclaration] = [*AGGREGATORS.values(), *PRE_AGGREGATORS.values()]
every = pytest.mark.parametrize("declared", ALL, ids=lambda declared: declared.name)
Change = Callable[[Tensor], Any]


def swapped(rows: Tensor) -> np.ndarray:
    """Return the rows in the other byte order, backwards in memory and not to be written to."""
    array = rows.numpy()[::-1].astype(rows.numpy().dtype.newbyteorder())[::-1]
    array.flags.writeable = False
    return array


TAKEN: dict[str, Change] = {
    "a tensor": lambda rows: rows,
    "float64": lambda rows: rows.double(),
    "requires grad": lambda rows: rows.clone().requires_grad_(),
    "not contiguous": lambda rows: rows.T.contiguous().T,
    "every second row": lambda rows: rows.repeat_interleave(2, 0)[::2],
    "a list of tensors": list,
    "a tuple of tensors": tuple,
    "tensors that require grad": lambda rows: [row.clone().requires_grad_() for row in rows],
    "an array": lambda rows: rows.numpy(),
    "an array of float64": lambda rows: rows.double().numpy(),
    "an array of unusual memory": swapped,
    "a list of arrays": lambda rows: list(rows.numpy()),
    "a list of lists": lambda rows: rows.tolist(),
}
REFUSED: dict[str, tuple[Change, str]] = {
    "None": (lambda rows: None, "gradients are a NoneType; they must be a tensor, an array or a list"),
    "a number": (lambda rows: 3.0, "gradients are a float"),
    "a text": (lambda rows: "1 2 3", "gradients are a str"),
    "a dictionary": (lambda rows: {0: rows}, "gradients are a dict"),
    "a generator": (iter, "gradients are a generator|gradients are a .*iterator"),
    "sparse": (lambda rows: rows.to_sparse(), "gradients are a sparse tensor"),
    "a list of sparse": (lambda rows: [row.to_sparse() for row in rows], "gradients are a list of unlike rows"),
    "unlike lengths": (lambda rows: [[1.0], [1.0, 2.0]], "gradients are a list of unlike rows"),
    "tensors of unlike lengths": (lambda rows: [rows[0], rows[1, 1:]], "gradients are a list of unlike rows"),
    "tensors and lists": (lambda rows: [rows[0], rows[1].tolist()], "gradients are a list of unlike rows"),
    "texts": (lambda rows: [["a", "b"]], "gradients are a list of <U1"),
    "objects": (lambda rows: [[None, 1.0]], "gradients are a list of object"),
    "long doubles": (lambda rows: rows.numpy().astype(np.longdouble), "gradients are a ndarray of float128"),
    "masked": (lambda rows: np.ma.masked_array(rows.numpy()), "gradients are a MaskedArray"),
    "complex": (lambda rows: rows.to(torch.complex64), r"gradients are \(11, 6\) torch.complex64"),
    "bool": (lambda rows: rows > 0, r"gradients are \(11, 6\) torch.bool"),
    "float16": (lambda rows: rows.half(), "torch.float16; they must be"),
    "bfloat16": (lambda rows: rows.bfloat16(), "torch.bfloat16; they must be"),
    "0-d": (lambda rows: rows[0, 0], r"gradients are \(\)"),
    "1-d": (lambda rows: rows[0], r"gradients are \(6,\)"),
    "3-d": (lambda rows: rows[None], r"gradients are \(1, 11, 6\)"),
    "an empty list": (lambda rows: [], r"gradients are \(0,\)"),
    "no rows": (lambda rows: rows[:0], "needs at least"),
    "no columns": (lambda rows: rows[:, :0], r"gradients are \(11, 0\)"),
}
WRONG_F = ["1", 1.0, None, True, np.float64(1), np.bool_(True), [1], torch.tensor(1.0)]


def call(declared: RowsDeclaration, gradients: Any, **options: Any) -> Tensor:
    if isinstance(declared, PreAggregatorDeclaration) and declared.draws:
        options["generator"] = torch.Generator().manual_seed(3)
    return declared(gradients, **options)


@every
def test_a_rule_takes_tensors_arrays_and_lists(declared: RowsDeclaration) -> None:
    rows = rows_of(11, 6)
    expected = call(declared, rows, f=1)
    for kind, change in TAKEN.items():
        given = change(rows)
        found = call(declared, given, f=1)
        torch.testing.assert_close(found, expected, check_dtype=False, msg=kind)
        assert found.dtype == (
            torch.float64 if kind in ("float64", "an array of float64", "a list of lists") else torch.float32
        )
        assert not found.requires_grad
    whole = (10 * rows).round()
    for change in (Tensor.int, Tensor.long, lambda rows: rows.int().numpy(), lambda rows: rows.int().tolist()):
        torch.testing.assert_close(call(declared, change(whole), f=1), call(declared, whole.double(), f=1))


@every
def test_a_rule_refuses_the_rest_in_one_sentence(declared: RowsDeclaration) -> None:
    for change, words in REFUSED.values():
        with pytest.raises(ValueError, match=f"^{declared.name}: .*({words})"):
            call(declared, change(rows_of(11, 6)), f=1)


@every
def test_f_is_a_whole_number(declared: RowsDeclaration) -> None:
    rows = rows_of(11, 6)
    for f in WRONG_F:
        with pytest.raises(ValueError, match=f"^{declared.name}: f must be a whole number, got "):
            call(declared, rows, f=f)
    with pytest.raises(ValueError, match=f"^{declared.name}: f = -1; it must be 0 or more"):
        call(declared, rows, f=-1)
    for f in (np.int64(1), np.uint8(1), torch.tensor(1)):
        assert torch.equal(call(declared, rows, f=f), call(declared, rows, f=1))


@every
def test_options_of_another_kind_are_refused(declared: RowsDeclaration) -> None:
    for name, option in declared.options.items():
        if not option.argument or isinstance(option.default, str):
            continue
        for value in ("1", True, [2], 1j):
            with pytest.raises(ValueError, match=f"^{declared.name}: {name} must be a (whole )?number, got "):
                call(declared, rows_of(11, 6), f=1, **{name: value})


def test_a_pre_aggregator_that_draws_says_so() -> None:
    with pytest.raises(ValueError, match="bucketing: draws at random and needs a generator"):
        PRE_AGGREGATORS["bucketing"](rows_of(11, 6), f=1)


def test_references_and_centres() -> None:
    rows = rows_of(11, 6)
    for reference in (rows[2], rows[2].numpy(), rows[2].tolist(), np.int64(2)):
        assert torch.equal(
            AGGREGATORS["monna"](rows, f=1, reference=reference), AGGREGATORS["monna"](rows, f=1, reference=2)
        )
    with pytest.raises(ValueError, match=r"monna: reference must be a whole number, got 1\.5"):
        AGGREGATORS["monna"](rows, f=1, reference=1.5)
    with pytest.raises(ValueError, match="centered_clipping: centre are a str"):
        AGGREGATORS["centered_clipping"](rows, f=1, centre="zero")


@pytest.mark.parametrize("pre", [[], [("nnm", {})], [("clipping", {})], [("bucketing", {"size": 2}), ("arc", {})]])
def test_aggregate_has_the_same_door(pre: list[tuple[str, dict[str, Any]]]) -> None:
    rows = rows_of(11, 6)

    def made(given: Any, **options: Any) -> Tensor:
        return aggregate(given, "krum", pre=pre, generator=torch.Generator().manual_seed(1), **options)

    for change in TAKEN.values():
        torch.testing.assert_close(made(change(rows), f=1), made(rows, f=1), check_dtype=False)
    for change, words in REFUSED.values():
        with pytest.raises(ValueError, match=words):
            made(change(rows), f=1)
    for f in WRONG_F:
        with pytest.raises(ValueError, match="krum: f must be a whole number, got "):
            made(rows, f=f)


@pytest.mark.parametrize("name", CODES)
def test_schemes_encode_and_decode_arrays_and_lists(name: str) -> None:
    scheme = build(name, workers=12, adversaries=1)
    gradients = gradients_for(scheme, 9)
    sent = honest(scheme, gradients)
    part = gradients[torch.from_numpy(scheme.assignment[0])]
    for change in (Tensor.numpy, Tensor.tolist, list, lambda rows: rows.clone().requires_grad_()):
        assert torch.equal(scheme.encode(0, change(part)), sent[0])
    for change in (lambda rows: None, Tensor.to_sparse, lambda rows: rows.to(torch.complex64), lambda rows: rows > 0):
        with pytest.raises(ValueError, match=f"^{name}: gradients are "):
            scheme.encode(0, change(part))
    expected = scheme.decode(sent, seed=1)
    for change in (Tensor.numpy, list):
        found = scheme.decode(change(sent), seed=1)
        assert torch.equal(found.gradients, expected.gradients)
        assert found.suspects == expected.suspects
    for change in (lambda rows: None, Tensor.to_sparse, lambda rows: [rows[0], rows[1, 1:]], lambda rows: rows != 0):
        with pytest.raises(ValueError, match=f"^{name}: replies are "):
            scheme.decode(change(sent))
