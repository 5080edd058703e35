"""What a page shows, read as a browser would; text that must never run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

N, K, D = 120, 5, 6
VOID = {"meta", "link", "img", "input", "br"}
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</style></title></textarea><script>alert(2)</script>",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "x" * 10_000,
    "\N{RIGHT-TO-LEFT OVERRIDE}evil\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET}",
    "\0\x1b[31m\ud800 line\nbreak",
)


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails where elements are not properly nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.open, self.elements, self.words = text, [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def shown(self) -> str:
        return "".join(self.words)

    def count(self, tag: str) -> int:
        return sum(one == tag for one, _ in self.elements)

    def table(self) -> list[list[str]]:
        """That of all classes."""
        classes = self.text.partition('<table id="classes">')[2].partition("</table>")[0]
        rows = re.findall(r"<tr>(.*?)</tr>", classes, re.DOTALL)
        return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]

    def column(self, name: str) -> list[str]:
        head, *rows = self.table()
        return [row[head.index(name)] for row in rows]


def assert_alone(text: str) -> Page:
    """A whole page that reaches for nothing and runs only what is ours."""
    page = Page(text)
    assert page.count("script") == 1
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        assert all(attributes.get(name, "data:").startswith("data:") for name in ("src", "href"))
    assert "url(" not in text
    assert "@import" not in text
    return page


def history() -> list[dict[str, Any]]:
    return [
        {"epoch": e, "loss": 2 / e, "nmi": e / 10, "churn": 0.5**e, "relabellings": int(e in (2, 4))}
        for e in range(1, 7)
    ]
