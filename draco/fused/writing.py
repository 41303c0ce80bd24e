"""The source of a function of columns, written by running it on values that write down what is done with them."""

from __future__ import annotations

from typing import Any


class Value:
    """A number of every column: what is done with it becomes a line of source."""

    def __init__(self, lines: list[str], name: str) -> None:
        self.lines, self.name = lines, name

    def new(self, expression: str) -> Value:
        """Return the value of an expression, which becomes a line."""
        value = Value(self.lines, f"v{len(self.lines)}")
        self.lines.append(f"{value.name} = {expression}")
        return value

    def __add__(self, other: Any) -> Value:
        return self.new(f"{self.name} + {_name(other)}")

    def __sub__(self, other: Any) -> Value:
        return self.new(f"{self.name} - {_name(other)}")

    def __mul__(self, other: Any) -> Value:
        return self.new(f"{self.name} * {_name(other)}")

    def __lt__(self, other: Any) -> Value:
        return self.new(f"{self.name} < {_name(other)}")


def _name(value: Any) -> str:
    return value.name if isinstance(value, Value) else repr(value)


def where(condition: Value, yes: Value, no: Value) -> Value:
    """Return `yes` where the condition holds, `no` elsewhere."""
    return condition.new(f"tl.where({condition.name}, {yes.name}, {no.name})")


def minimum(a: Value, b: Value) -> Value:
    """Return the smaller of each two."""
    return a.new(f"tl.minimum({a.name}, {b.name})")


def maximum(a: Value, b: Value) -> Value:
    """Return the larger of each two."""
    return a.new(f"tl.maximum({a.name}, {b.name})")


def sign(a: Value) -> Value:
    """Return -1, 0 or 1."""
    return a.new(f"tl.where({a.name} > 0.0, 1.0, 0.0) - tl.where({a.name} < 0.0, 1.0, 0.0)")


def quotient(a: Value, count: int, double: bool) -> Value:
    """Return a / count, rounded as on a CPU."""
    if double:
        return a.new(f"{a.name} / {count:.1f}")
    return a.new(f"tl.div_rn({a.name}, tl.full([BLOCK], {count:.1f}, tl.float32))")


def finite_or(a: Value, other: Value) -> Value:
    """Return a where it is finite, and the other where it is not."""
    return a.new(f"tl.where({a.name} - {a.name} == 0.0, {a.name}, {other.name})")


def source(m: int, lines: list[str], result: Value) -> str:
    """Return the kernel `reduced` that stores `result`, made by `lines` of the values x0 .. of m rows.

    The rows are `stride` numbers apart; which they are is read from `rows`, where not EVERY one of them is taken. With
    WATCH `flag` becomes 1 where a value is NaN or infinite.
    """
    head = """
def reduced(given, rows, out, flag, d, stride, EVERY: tl.constexpr, WATCH: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < d
    apart = stride.to(tl.int64)
"""
    body = []
    for i in range(m):
        body += [
            "if EVERY:",
            f"    p{i} = apart * {i}",
            "else:",
            f"    p{i} = apart * tl.load(rows + {i})",
            f"x{i} = tl.load(given + p{i} + at, mask=inside, other=0.0)",
        ]
    body += ["if WATCH:", "    watched = x0 * 0.0"]
    body += [f"    watched += x{i} * 0.0" for i in range(1, m)]
    body += ["    tl.store(flag + tl.zeros([BLOCK], tl.int32), tl.full([BLOCK], 1, tl.int32), mask=watched != 0.0)"]
    body += [*lines, f"tl.store(out + at, {result.name}, mask=inside)"]
    return head + "\n".join("    " + line for line in body) + "\n"
