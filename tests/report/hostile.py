"""Text as a worker, a node or a file's name may have it, and what a screen or page must never get of it."""

import re
from html.parser import HTMLParser

HOSTILE = {
    "markup": "[/red][bold]x[/]",
    "colour": "\x1b[31mred",
    "title": "\x1b]0;mine\x07",
    "c1": "\x9b2Jc1",
    "lines": "one\nroot: all is well\r\x0btwo",
    "direction": "\u202egpj.exe\u2066",
    "half": "half \udcff",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "attribute": "\"' onload=alert(1)",
    "mathematics": "$\\frac{$ $x$ _",
    "formula": '=HYPERLINK("http://x")|calc',
    "shell": "$(touch pwned) `touch pwned`; touch pwned",
    "template": "{{ 7 * 7 }}{% include 'x' %}",
    "table": "a | b | c",
    "long": "z" * 1_000_000,
}
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags |= {tag, *(name for name, _ in attrs if name.startswith("on"))}


def assert_shown_as_text(shown: str) -> None:
    """Fail where something would be obeyed, or is so long that it hides the rest."""
    assert not OBEYED.search(shown)
    assert max(map(len, shown.split("\n"))) < 50_000


def assert_page_shows_text(page: str) -> None:
    """Fail where a page has an element or a handler that its templates do not have."""
    parser = _Tags()
    parser.feed(page)
    assert not parser.tags & {"script", "onerror", "onload", "iframe"}
    assert len(re.findall("<img ", page)) == len(re.findall('<img src="data:image/png;base64,', page))
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", without_pictures)
