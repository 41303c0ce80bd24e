"""Elements of the page as values: a run with its name, a picture, a table, a number as text."""

import base64
import math
from collections.abc import Sequence
from typing import NamedTuple

from draco.report.series import Series
from draco.report.summary import Left


class Run(NamedTuple):
    """One run of a page."""

    label: str  # its name; its directory's where names repeat
    left: Left
    series: Series


class Picture(NamedTuple):
    """A figure inside the page."""

    png: bytes
    alternative: str  # what is to be seen, in words
    caption: str

    @property
    def data(self) -> str:
        """Return the file in base64."""
        return base64.b64encode(self.png).decode()

    @property
    def size(self) -> tuple[int, int]:
        """Return (width, height) in pixels, from the PNG's header."""
        return int.from_bytes(self.png[16:20], "big"), int.from_bytes(self.png[20:24], "big")


class Table(NamedTuple):
    """Rows of text under headers."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]  # the first cell names its row
    words: Sequence[str] = ()  # headers of columns that hold words; all others hold numbers


def number(value: float, form: str) -> str:
    """Return a number as text, and a dash for NaN, which stands for what is not known."""
    return "-" if math.isnan(value) else format(value, form)
