"""The first check of samples(), batch(), collate() and augment(): is there a batch, and always the same one?

Shapes: N samples of a split, B samples in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from draco.sampling import generator
from draco.tasks.building import seeded
from draco.tasks.first_check.bits import digests, kind, leaves, not_finite, shapes, some, tensors, unlike
from draco.tasks.first_check.calls import Calls, Failed, batch_words
from draco.tasks.task import Task, count

_KEYED = 4  # samples that are looked at besides the first, the last and those of a batch
_TUPLE_AT_MOST = 8  # a list of so many tensors was meant as a tuple


def fetch(calls: Calls, split: str) -> Any:
    """Return the samples of a split, with global generators seeded as in a run.

    Raises:
        Failed: they cannot be fetched, or are none.
    """
    with seeded(calls.setting.seed, "samples", split):
        return calls.call("samples", lambda: calls.task.samples(split), seeded=True)


def check(calls: Calls, split: str, samples: Any) -> int:
    """Look at what samples() returned; return N.

    Raises:
        Failed: it is nothing that samples can be taken from.
    """
    fields = _fields(samples)
    if type(calls.task).batch is not Task.batch:  # which knows what it takes
        fields = None
        if not hasattr(samples, "__len__"):
            raise calls.fail("samples", f'samples("{split}") returns {_a(samples)}, which has no len')
    elif fields is not None:
        sizes = {name: len(rows) if _has_rows(rows) else None for name, rows in fields.items()}
        if bad := [f"{name} is a {kind(fields[name])}" for name, size in sizes.items() if size is None]:
            raise calls.fail("samples", f'samples("{split}"): {some(bad)}; each must have a row for every sample')
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{name} has {size}" for name, size in sizes.items())
            raise calls.fail("samples", f'samples("{split}") has unlike numbers of rows: {told}; one for each sample')
        if other := [f"{name} is a {type(rows).__name__}" for name, rows in fields.items() if not _is_tensor(rows)]:
            raise calls.fail("samples", f'samples("{split}"): {some(other)}; torch.as_tensor makes it a tensor')
    elif not hasattr(samples, "__len__") or not hasattr(samples, "__getitem__"):
        raise calls.fail(
            "samples",
            f'samples("{split}") returns {_a(samples)}, which has no len and items; return tensors, a tuple or dict of '
            "them, or a torch.utils.data.Dataset",
        )
    size = calls.call("samples", lambda: count(samples))
    if size == 0:
        raise calls.fail("samples", f'samples("{split}") has no samples')
    listed = isinstance(samples, list) and len(samples) <= _TUPLE_AT_MOST and all(map(_is_tensor, samples))
    if split == "train" and size < calls.setting.batch_size:
        hint = "; a list is a data set with an item for each sample: for tensors of N rows return a tuple"
        needed = f"and batch_size is {calls.setting.batch_size}"
        calls.fault("samples", f'samples("{split}") has {size} samples, {needed}{hint if listed else ""}')
        if listed:
            raise Failed
    return size


def check_again(calls: Calls, samples: Any, again: Any) -> None:
    """Compare samples that were fetched twice, by their number and some of them."""
    sizes = count(samples), count(again)
    if sizes[0] != sizes[1]:
        calls.fault("samples", f'samples("train") has {sizes[0]} samples at one call and {sizes[1]} at the next')
        return
    for place in some_places(calls.setting.seed, sizes[0]):
        index = torch.tensor([place])
        first, second = (digests(calls.task.batch(each, index)) for each in (samples, again))
        if differing := unlike(first, second):
            calls.fault(
                "samples",
                f'two calls of samples("train") give another sample {place} ({some(differing)}); put them in an order '
                "that is always the same: sort file names, seed what is shuffled",
            )
            return


def some_places(seed: int, size: int) -> list[int]:
    """Return the first sample, the last, and a few that the seed chooses."""
    drawn = torch.randint(size, (_KEYED,), generator=generator(seed, "first check"))
    return sorted({0, size - 1, *drawn.tolist()})


def batch(calls: Calls, samples: Any, indices: Tensor, method: str = "batch") -> Any:
    """Return the samples at some indices, which are looked at.

    Raises:
        Failed: they cannot be made a batch, or not always the same one; a fault says which sample.
    """
    task = calls.task
    before = len(calls.faults)
    try:
        made = calls.call(_maker(calls, samples), lambda: task.batch(samples, indices))
    except Failed:
        _find_sample(calls, samples, indices.tolist(), calls.faults[before:])
        raise
    method = _maker(calls, samples)
    if bad := [f"{name} is a {type(value).__name__}" for name, value in leaves(made) if not _is_tensor(value)]:
        raise calls.fail(method, f"{some(bad)}; a batch holds tensors only: leave it out, or make numbers of it")
    if not [*leaves(made)]:
        raise calls.fail(method, "the batch is empty: it holds no tensor")
    size = len(indices)
    if bad := [f"{name} {kind(value)}" for name, value in leaves(made) if value.ndim == 0 or len(value) != size]:
        raise calls.fail(method, f"of {size} samples it makes {some(bad)}; the first dimension must be {size}")
    if bad := [f"{name} ({each.device})" for name, each in tensors(made).items() if each.device.type != "cpu"]:
        raise calls.fail(method, f"{some(bad)} is not on the CPU; the job's device moves it")
    return made


def check_batch(calls: Calls, samples: Any, indices: Tensor) -> Any:
    """Return the training batch at some indices, augmented by the generator of step 1; it is made twice and compared.

    Raises:
        Failed: there is no such batch; a fault says why.
    """
    before = calls.draws
    made = batch(calls, samples, indices)
    first = digests(made)
    drew = calls.draws > before
    if not drew and (differing := unlike(first, digests(calls.task.batch(samples, indices)))):
        places = [place for place in indices.tolist() if _differs(calls.task, samples, place)]
        raise calls.fail(
            _maker(calls, samples),
            f"the same samples at two times differ in {some(differing)} (samples {some(places or indices.tolist())}); "
            "draw what is random in augment(), from its generator",
        )
    if infinite := not_finite(made):
        calls.warn(_maker(calls, samples), f"{some(infinite)} of the first batch is not finite")
    if type(calls.task).augment is Task.augment and type(calls.task).drawn is Task.drawn:
        return made
    return _augmented(calls, samples, indices, made, {} if drew else first)


def check_ends(calls: Calls, samples: Any, size: int) -> None:
    """Make a batch of the first sample, the last and a few others, one by one."""
    for place in some_places(calls.setting.seed, size):
        batch(calls, samples, torch.tensor([place]))


def _augmented(calls: Calls, samples: Any, indices: Tensor, made: Any, fixed: Mapping[str, str]) -> Any:
    def source() -> torch.Generator:
        return generator(calls.setting.seed, "augmentation", 1, 0)

    def anew() -> Any:
        return calls.task.drawn(samples, indices, source())

    method = "augment" if type(calls.task).drawn is Task.drawn else "drawn"

    before = calls.draws
    changed = calls.call(method, anew, about=batch_words(made))
    drew = calls.draws > before
    sizes = {name: value for name, value in tensors(changed).items() if value.ndim == 0 or len(value) != len(indices)}
    if sizes or not tensors(changed):
        told = shapes(changed)
        raise calls.fail(method, f"of a batch of {len(indices)} samples it makes {told}; their number must stay")
    if drew or not fixed:
        return changed
    again = calls.call(method, anew)
    if unlike(fixed, digests(calls.task.batch(samples, indices))):
        raise calls.fail(method, "it changes the samples themselves, as the next batch shows; work on a copy")
    if differing := unlike(digests(changed), digests(again)):
        raise calls.fail(
            method, f"two calls with equal generators differ in {some(differing)}; draw from its generator alone"
        )
    return changed


def _find_sample(calls: Calls, samples: Any, places: Sequence[int], faults: Sequence[str]) -> None:
    """Say which of some samples cannot be fetched, or which do not fit together, after the fault that says what."""
    if type(calls.task).batch is Task.batch and (_fields(samples) is not None or _is_tensor(samples)):
        return
    items: dict[int, Any] = {}
    for place in places:
        try:
            alone = calls.task.batch(samples, torch.tensor([place]))
            items[place] = samples[place] if hasattr(samples, "__getitem__") else alone
        except Exception:
            _add(calls, faults, f" (sample {place})")
            return
    forms = {place: {name: kind(value) for name, value in leaves(item, "item")} for place, item in items.items()}
    first = places[0]
    for place, form in forms.items():
        for name in {**forms[first], **form}:
            one, other = (each.get(name, "missing") for each in (forms[first], form))
            if one != other:
                told = f"sample {first} has {name} {one}, sample {place} has {name} {other}"
                _add(calls, faults, f": {told}; give all the same shape, or write a collate() that pads them")
                return
    strange = [f"{name} is a {form}" for name, form in forms[first].items() if form in ("NoneType", "object")]
    _add(calls, faults, f" (samples {some(places)}{': ' if strange else ''}{some(strange)})")


def _add(calls: Calls, faults: Sequence[str], text: str) -> None:
    calls.faults[calls.faults.index(faults[-1])] += text


def _differs(task: Task, samples: Any, place: int) -> bool:
    index = torch.tensor([place])
    return bool(unlike(digests(task.batch(samples, index)), digests(task.batch(samples, index))))


def _maker(calls: Calls, samples: Any) -> str:
    """Return which method of the task makes its batches."""
    if type(calls.task).batch is not Task.batch:
        return "batch"
    return "collate" if type(calls.task).collate is not Task.collate else "samples"


def _fields(samples: Any) -> dict[str, Any] | None:
    """Return the rows of a tuple or dict by name; None for other samples."""
    if isinstance(samples, dict):
        return {repr(name): rows for name, rows in samples.items()}
    if isinstance(samples, tuple):
        return {f"[{place}]": rows for place, rows in enumerate(samples)}
    return None


def _a(thing: object) -> str:
    return "None" if thing is None else f"a {type(thing).__name__}"


def _has_rows(rows: Any) -> bool:
    return hasattr(rows, "__len__") and not (_is_tensor(rows) and rows.ndim == 0)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
