"""Text that others wrote, made plain: one line of visible characters, and no longer than it may be."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draco.plain import LONGEST, lines, plain, value

ANY = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)


@given(ANY | ANY.map(lambda text: text * 40))
def test_what_is_plain_is_one_line_that_a_terminal_cannot_obey_and_stays_as_it_is(text: str) -> None:
    shown = plain(text)
    assert len(shown) <= LONGEST
    assert shown.isprintable()
    assert plain(shown) == shown
    shown.encode()  # no half of a pair is left


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=LONGEST))
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert plain(text) == text


@given(st.integers(LONGEST + 1, 3 * LONGEST), st.sampled_from("x\0é\u202e"))
def test_what_is_cut_says_how_long_it_was(length: int, letter: str) -> None:
    assert plain(letter * length).endswith(f"… ({length:,} characters)")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),  # the same as ESC [ where a terminal knows C1
        ("a\r\nb\u2028c", r"a\r\nb\u2028c"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\u2066a\u2069\u200b\ufeff", r"\u2066a\u2069\u200b\ufeff"),
        ("\udcff", r"\udcff"),
        ("e" + "\u0301" * 6, "e" + "\u0301" * 4 + r"\u0301\u0301"),
        ("[/red] <b> $x$ % naïve 日本", "[/red] <b> $x$ % naïve 日本"),
        ("x" * 1_000_000, "x" * (LONGEST - 40) + "… (1,000,000 characters)"),
    ],
)
def test_what_would_be_obeyed_is_written_out(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(ANY)
def test_lines_stay_lines_and_nothing_else_ends_one(text: str) -> None:
    shown = lines(text)
    assert shown.count("\n") == text.replace("\r\n", "\n").count("\n")
    assert re.sub("[\n\t]", "", shown).isprintable()


def test_every_text_in_a_value_is_made_plain_and_numbers_are_left() -> None:
    given = {"a\n": ["\x1b", 1, None, {"b": 2.5}], "c": True}
    assert value(given) == {"a\\n": ["\\x1b", 1, None, {"b": 2.5}], "c": True}
