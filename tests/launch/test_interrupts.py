"""Ctrl-C: who counts it, and that Python's own handling comes back afterwards."""

import os
import signal
from pathlib import Path

import pytest

from draco.launch.interrupts import Interrupts

PACKAGE = Path(__file__).parents[2] / "draco"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_each_wish_to_end_is_counted_and_answered(number: signal.Signals) -> None:
    said: list[tuple[int, str]] = []
    with Interrupts(lambda count, name: said.append((count, name))) as interrupts:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert interrupts.count == 2
    assert said == [(1, number.name), (2, number.name)]


def test_outside_ctrl_c_ends_a_command_as_it_always_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts(), pytest.raises(RuntimeError):
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_every_place_that_handles_an_interrupt_is_named_in_one_table() -> None:
    table = (PACKAGE / "launch" / "interrupts.py").read_text()
    # These only send signals: `draco stop`, and a repair that ends the command it has started.
    handled = [path for path in PACKAGE.rglob("*.py") if path.name not in ("interrupts.py", "stop.py", "repair.py")]
    signs = ("KeyboardInterrupt", "signal.SIGINT", "Interrupts(")
    found = [path for path in handled if any(sign in path.read_text() for sign in signs)]
    assert [path for path in found if path.name not in table] == []
