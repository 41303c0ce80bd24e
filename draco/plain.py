"""The door for text that others wrote: a worker, a node, a run directory, an event, a file's name.

Such text is shown, and never obeyed. What a terminal, a page or a reader's eye could take for more than letters is
written out: escape sequences, line ends, marks that turn the direction of writing, letters without a width. What is
too long is cut, and says how long it was. Brackets of rich and of HTML stay as they are: who shows the text shows it as
text (draco/cli/console.py, draco/report/).
"""

import unicodedata
from typing import Any

LONGEST = 2000  # characters of a line
_ROOM = 40  # of which the remark on its length takes at most so many
_MARKS = 4  # accents on one letter; a heap of them covers the lines around it
_FIRST_MARK = "\u0300"


def plain(text: str, longest: int = LONGEST) -> str:
    r"""Return a text as one line of visible characters, cut so that it is no longer than `longest`, 40 or more.

    What Python does not call printable (str.isprintable) is written as in a Python string. The same again changes
    nothing.

    >>> plain("red\x1b[31m\nalert")
    'red\\x1b[31m\\nalert'
    """
    if len(text) <= longest and text.isprintable() and max(text, default="") < _FIRST_MARK:
        return text
    shown = "".join(_visible(text[: longest + 1]))
    if len(text) <= longest and len(shown) <= longest:
        return shown
    kept, room = "", longest - _ROOM
    for letter in _visible(text[:room]):
        if len(kept) + len(letter) > room:
            break
        kept += letter
    return f"{kept}… ({len(text):,} characters)"


def _visible(text: str) -> list[str]:
    """Return what each character is shown as."""
    shown, marks = [], 0
    for letter in text:
        marks = marks + 1 if unicodedata.category(letter) in ("Mn", "Me") else 0
        bad = not letter.isprintable() or marks > _MARKS
        shown.append(_written(letter) if bad else letter)
    return shown


def _written(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def lines(text: str, longest: int = LONGEST) -> str:
    """Return a text of several lines with each as `plain` makes it; tabs stay, a lone carriage return does not."""
    whole = text.replace("\r\n", "\n").split("\n")
    return "\n".join("\t".join(plain(part, longest) for part in line.split("\t")) for line in whole)


def value(given: Any) -> Any:
    """Return what JSON holds with every text in it as `plain` makes it, the keys too."""
    if isinstance(given, str):
        return plain(given)
    if isinstance(given, list):
        return [value(each) for each in given]
    if isinstance(given, dict):
        return {plain(key): value(each) for key, each in given.items()}
    return given
