"""Inner products of rows, and their squared distances to a point: the rows are read once where they are 16 or fewer.

A thread keeps the products of its columns' values in registers and adds them up over many columns. What the threads of
a program have is added in a tree, and the programs' sums in float64, always in the same order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from draco.fused.source import THREADS, chosen, compiled, launched, usable
from draco.lazy import Tensor, torch

WHOLE = 16  # rows of which a thread keeps all products
GROUP = 10  # with more rows, or float64 products of over 8, it keeps those of two groups of rows
PRECISE, PRECISE_GROUP = 8, 7
NORMS = 32  # rows of which a thread keeps the squares
PROGRAMS = 1024  # at most; each adds up a part of the columns

Pairs = tuple[tuple[int, int], ...]


def gram(given: Tensor, rows: list[int], centre: Tensor | None, precise: bool) -> Tensor | None:
    """Return the inner products (m, m), float64, of the chosen rows of `given` (n, d) about a centre (d,) or zero.

    Differences, products and a thread's sums are float32, or float64 with `precise` or float64 rows. None: there is no
    kernel.
    """
    m, wide = len(rows), precise or given.dtype == torch.float64
    if m <= (PRECISE if wide else WHOLE):
        groups = [list(range(m))]
    else:
        count = -(-m // (PRECISE_GROUP if wide else GROUP))
        size = -(-m // count)
        groups = [list(range(start, min(start + size, m))) for start in range(0, m, size)]
    out = torch.zeros(m, m, dtype=torch.float64, device=given.device)
    # Short groups are filled with their last row, whose products are then written where they belong once more.
    full = [[*group, *group[-1:] * (len(groups[0]) - len(group))] for group in groups]
    size = len(full[0])
    own = tuple((i, j) for i in range(size) for j in range(i, size))
    mixed = tuple((i, size + j) for i in range(size) for j in range(size))
    beside = [a + b for k, a in enumerate(full) for b in full[:k]]
    for pairs, sets in ((own, full), (mixed, beside)):
        if not sets:
            continue
        sums = _sums(given, [[rows[i] for i in its] for its in sets], pairs, centre, wide)
        if sums is None:
            return None
        a = torch.tensor([[its[i] for i, _ in pairs] for its in sets], device=given.device)
        b = torch.tensor([[its[j] for _, j in pairs] for its in sets], device=given.device)
        out[a, b] = sums
        out[b, a] = sums
    return out


def squares(given: Tensor, rows: list[int], centre: Tensor | None, precise: bool) -> Tensor | None:
    """Return the squared distances (m,), float64, of the chosen rows to a centre (d,) or zero; else as `gram`."""
    wide = precise or given.dtype == torch.float64
    sets = [rows[start : start + NORMS] for start in range(0, len(rows), NORMS)]
    if not sets:
        return None
    full = [[*its, *its[-1:] * (len(sets[0]) - len(its))] for its in sets]
    sums = _sums(given, full, tuple((i, i) for i in range(len(full[0]))), centre, wide)
    return None if sums is None else sums.flatten()[: len(rows)]


def _sums(given: Tensor, sets: list[list[int]], pairs: Pairs, centre: Tensor | None, wide: bool) -> Tensor | None:
    """Return the products of pairs (p,) of places in every set of rows, (sets, p)."""
    d = given.shape[1]
    about = [] if centre is None else [centre]
    if not usable(given, *about) or not d or any(t.stride(-1) != 1 for t in (given, *about) if d > 1):
        return None
    programs = min(-(-d // THREADS), PROGRAMS)
    steps = -(-d // (THREADS * programs))
    parts = torch.empty(programs, len(sets), len(pairs), dtype=torch.float64, device=given.device)
    if not launched(
        f"products of {len(sets[0])} rows", lambda: _kernel(len(sets[0]), pairs, wide, centre is not None),
        (programs, len(sets)),
        given, chosen([row for rows in sets for row in rows], given.device), given if centre is None else centre,
        parts, d, given.stride(0), steps, BLOCK=THREADS,
    ):  # fmt: skip
        return None
    return parts.sum(0)


@lru_cache(maxsize=64)
def _kernel(m: int, pairs: Pairs, wide: bool, centred: bool) -> Any:
    return compiled("products", text_of(m, pairs, wide, centred))


def text_of(m: int, pairs: Pairs, wide: bool, centred: bool) -> str:
    """Return the source of the kernel for sets of m rows; the next columns are read while these are multiplied."""
    kind = "tl.float64" if wide else "tl.float32"
    used = [f"y{i} = x{i}.to({kind}){' - c' if centred else ''}" for i in range(m)]
    loads = [f"x{i} = tl.load(given + p{i} + at, mask=at < d, other=0.0)" for i in range(m)]
    loads += ["z = tl.load(centre + at, mask=at < d, other=0.0)"] if centred else []
    body = [
        "this = tl.program_id(0).to(tl.int64)",
        "apart = stride.to(tl.int64)",
        f"place = rows + tl.program_id(1) * {m}",
        *(f"p{i} = apart * tl.load(place + {i})" for i in range(m)),
        *(f"s{k} = tl.zeros([BLOCK], {kind})" for k in range(len(pairs))),
        "step = tl.num_programs(0).to(tl.int64) * BLOCK",
        "at = this * BLOCK + tl.arange(0, BLOCK)",
        *loads,
        "for _ in range(steps):",
        *([f"    c = z.to({kind})"] if centred else []),
        *("    " + line for line in used),
        "    at += step",
        *("    " + line for line in loads),
        *(f"    s{k} += y{i} * y{j}" for k, (i, j) in enumerate(pairs)),
        f"into = parts + (this * tl.num_programs(1) + tl.program_id(1)) * {len(pairs)}",
        *(f"tl.store(into + {k}, tl.sum(s{k}, axis=0).to(tl.float64))" for k in range(len(pairs))),
    ]
    head = "\ndef products(given, rows, centre, parts, d, stride, steps, BLOCK: tl.constexpr):\n"
    return head + "\n".join("    " + line for line in body) + "\n"
