"""HTML as a list of what is in it, and whether it is well-formed."""

from html.parser import HTMLParser

Attributes = tuple[tuple[str, str | None], ...]
VOID = {"meta", "img", "br"}


class Document(HTMLParser):
    """The tags, texts and attributes of a page, in order; `faults` says what a browser would have to mend."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tokens: list[tuple[str, str, Attributes]] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tokens.append(("start", tag, tuple(attrs)))
        if len({name for name, _ in attrs}) < len(attrs):
            self.faults.append(f"<{tag}> has an attribute twice")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.tokens.append(("end", tag, ()))
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes something else")

    def handle_data(self, data: str) -> None:
        if self.tokens and self.tokens[-1][0] == "text":
            data = self.tokens.pop()[1] + data
        self.tokens.append(("text", data, ()))

    @property
    def words(self) -> list[tuple[str, str, Attributes]]:
        """The tokens, without what is only there for the eye of who reads the source."""
        return [(kind, " ".join(what.split()), more) for kind, what, more in self.tokens if what.strip()]

    @property
    def text(self) -> str:
        return " ".join(what for kind, what, _ in self.words if kind == "text")

    def elements(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each element of that name."""
        return [dict(more) for kind, what, more in self.tokens if kind == "start" and what == tag]

    def rows(self, first: str) -> list[list[str]]:
        """The cells of the table whose first cell has this text."""
        found: list[list[str]] = []
        for kind, what, _ in self.tokens:
            if (kind, what) == ("start", "table"):
                found = []
            elif (kind, what) == ("start", "tr"):
                found.append([])
            elif kind == "start" and what in ("td", "th"):
                found[-1].append("")
            elif kind == "text" and found and found[-1]:
                found[-1][-1] = (found[-1][-1] + what).strip()
            elif (kind, what) == ("end", "table") and found[0][0] == first:
                return found
        raise AssertionError(f"no table begins with {first!r}")
