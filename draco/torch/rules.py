"""Robust rules in the place of the mean that data-parallel ranks make of their gradients.

`all_reduce` is one call after the backward pass. `robust_hook` is the same for DistributedDataParallel, by buckets.

Up to f ranks may contribute any gradients at all: of poisoned data, say, or of a faulty program. But the ranks carry
the reduction themselves. A rank that lies about what others sent, or about what it made of it, is not found. Against
such ranks Draco's server is the tool, whom every worker answers directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from draco import aggregators
from draco.aggregators import AGGREGATORS
from draco.declaration import is_known
from draco.lazy import Tensor, torch

Hook = Callable[[Any, Any], Any]  # (state, torch.distributed.GradBucket) -> torch.futures.Future of a tensor


def all_reduce(
    gradients: Tensor | Iterable[Tensor], rule: str = "krum", f: int = 1, group: Any = None, **options: Any
) -> None:
    """Overwrite every rank's gradients by what `rule` makes of all ranks' gradients.

    All ranks of the group call it, with tensors of the same shapes, and get what `draco.aggregate` makes of the n whole
    gradients as rows: the same bits, and the same errors on every rank.

    A robust rule that looks at every coordinate by itself is computed by slices: each rank gets its slice of all
    gradients, and all get the n results. So a rank receives about 2 d numbers, as in an all-reduce by rings. (Where
    sums of kept values are above 3e38, the last bit may be another: such a slice is added up with scaled values.)
    Other rules need whole gradients: a rank receives n d numbers, needs memory for them, and computes the rule itself.
    Ranks with equal processors get equal bits of those; of the first kind all do.

    Args:
        gradients: a tensor, or tensors. Parameters stand for their `.grad`; where that is None, for zeros. Those that
            require no gradient are left out. Half precision is reduced in float32. Those of a DistributedDataParallel
            are already the mean, unless its backward pass was under `no_sync()`.
        rule: the aggregator's name, or the path of your own, as for `draco.aggregate`.
        f: how many ranks' gradients may be anything.
        group: a process group; None: all ranks.
        options: the rule's, alike on all ranks; `pre` and `generator` as for `draco.aggregate`.

    Raises:
        ValueError: the rule is unknown or refuses n ranks with f, more gradients hold NaN or infinity than it
            tolerates, or there is no gradient.
        OwnCodeError: your own rule is missing, or breaks its contract.
    """
    _require_known(rule)
    with torch.no_grad():
        given = _gradients(gradients)
        dtype = torch.float64 if any(each.dtype == torch.float64 for each in given) else torch.float32
        flat = torch.cat([each.detach().reshape(-1).to(dtype) for each in given])
        made = _reduced(flat, rule, f, group, options)
        for each, part in zip(given, torch.split(made, [each.numel() for each in given]), strict=True):
            each.detach().copy_(part.view(each.shape))


def robust_hook(rule: str, f: int, **options: Any) -> Hook:
    """Return a communication hook for DistributedDataParallel that reduces its buckets by `rule`.

        ddp = DistributedDataParallel(model)
        ddp.register_comm_hook(None, draco.torch.robust_hook("median", f=1))

    The state given to `register_comm_hook` is a process group, or None for all ranks. A bucket holds a part of the
    gradients, so only rules that look at every coordinate by itself can be computed on it. A rank whose bucket holds
    NaN or infinity is left out of that bucket alone.

    Args:
        rule: "median", "trimmed_mean", "meamed" or "sign_majority".
        f: how many ranks' gradients may be anything.
        options: the rule's.

    Raises:
        ValueError: the rule is unknown, or needs whole gradients. In the backward pass: what `all_reduce` raises.
    """
    _require_known(rule)
    if not _by_coordinate(rule, options):
        able = ", ".join(name for name in AGGREGATORS if _by_coordinate(name, {}))
        remedy = "call draco.torch.all_reduce(model.parameters(), ...) after the backward pass, under no_sync()"
        raise ValueError(
            f"robust_hook: {rule} needs whole gradients, and a hook sees buckets; {remedy}, or take {able}"
        )

    def hook(state, bucket):  # type: ignore[no-untyped-def]  # DDP looks at annotations, and takes none but its own
        buffer = bucket.buffer()
        with torch.no_grad():
            all_reduce(buffer, rule, f, state, **options)
        done: torch.futures.Future[Tensor] = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else [])
        done.set_result(buffer)
        return done

    return hook


def _require_known(rule: str) -> None:
    if not is_known(AGGREGATORS, rule):
        raise ValueError(f"aggregator {rule!r} is not one of {', '.join(AGGREGATORS)}")


def _gradients(given: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return the tensors to reduce; parameters without a gradient get one of zeros."""
    found = []
    for each in [given] if isinstance(given, torch.Tensor) else given:
        if not isinstance(each, torch.nn.Parameter):
            found.append(each)
        elif each.requires_grad:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
            found.append(each.grad)
    if not sum(each.numel() for each in found):
        raise ValueError("all_reduce: there is no gradient: no tensor, or no parameter that requires one")
    return found


def _by_coordinate(rule: str, options: Any) -> bool:
    """Say whether slices give the bits of the whole: one of our own rules, and nothing before it that mixes rows.

    Not the mean: in which order torch adds rows depends on how wide they are.
    """
    declared = AGGREGATORS.get(rule)
    return declared is not None and declared.by_coordinate and declared.robust and not options.get("pre")


def _reduced(flat: Tensor, rule: str, f: int, group: Any, options: Any) -> Tensor:
    """Return what the rule makes of all ranks' vectors (d,)."""
    distributed = torch.distributed
    n, d = distributed.get_world_size(group), len(flat)
    pre = [(each, {}) if isinstance(each, str) else each for each in options.pop("pre", ())]
    if not _by_coordinate(rule, {**options, "pre": pre}):
        rows = flat.new_empty(n, d)
        distributed.all_gather(list(rows), flat, group=group)
        return aggregators.aggregate(rows, rule, f=f, pre=pre, **options)
    width = -(-d // n)
    mine, whole = flat.new_empty(n, width), flat.new_zeros(n * width)
    whole[:d] = flat
    distributed.all_to_all_single(mine.view(-1), whole, group=group)
    mine[~_finite(mine, group)] = torch.nan  # so that the rule leaves a row out of every slice, or of none
    part = aggregators.aggregate(mine, rule, f=f, **options)
    distributed.all_gather(list(whole.view(n, width)), part, group=group)
    return whole[:d]


def _finite(mine: Tensor, group: Any) -> Tensor:
    """Return which ranks' gradients are finite in all slices, bool (n,), of one slice of each (n, width)."""
    n = len(mine)
    flags = torch.isfinite(mine).all(1).to(torch.uint8)
    of_slices = flags.new_empty(n, n)
    torch.distributed.all_gather(list(of_slices), flags, group=group)
    return of_slices.bool().all(0)
