"""Docstrings as they are written here, made into what autodoc reads.

Equations and code are indented paragraphs: they become literal blocks. Fields of data classes have their meaning in a
comment at the end of the line: these become a list of attributes.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from typing import Any

from sphinx.pycode import ModuleAnalyzer

CODE = re.compile(r"^\s*(def |class |from |import |labeler = |trainer = )", re.MULTILINE)
SECTIONS = ("Args:", "Attributes:")
CODED = re.compile(r"(``.*?``|`.*?`)")
NAMED = re.compile(r"^\s*\w+:")
MARKUP = re.compile(r"[*|]|_(?!\w)")  # what reStructuredText would take for its own


COLON = "\ue000"  # stands for one that napoleon would take for the end of a type
LETTER = re.compile(r"^(\s*(?:\w+: )?)([A-Z]\.(?:\s|$))")  # "K." begins no list


def setup(app: Any) -> dict[str, Any]:
    """Run before napoleon, which makes fields of the sections, and again after it."""
    app.connect("builder-inited", lambda _: forget_overloads())
    app.connect("autodoc-skip-member", lambda app, what, name, *_: True if name.endswith("_request") else None)
    app.connect("autodoc-process-docstring", process, priority=100)
    app.connect("autodoc-process-docstring", finish, priority=900)
    return {"parallel_read_safe": True}


def forget_overloads() -> None:
    """Show the one signature that has all arguments, not those by which type checkers tell results apart."""
    analyze = ModuleAnalyzer.analyze

    def without_overloads(self: ModuleAnalyzer) -> None:
        analyze(self)
        self.overloads = {}

    ModuleAnalyzer.analyze = without_overloads  # type: ignore[method-assign]


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Change the lines of one docstring in place."""
    if dataclasses.is_dataclass(obj) and isinstance(obj, type) and not any(line in SECTIONS for line in lines):
        lines += ["", *attributes(obj)]
    lines[:] = with_literal_blocks(lines)
    in_sentence = what == "property"
    for k, line in enumerate(lines):
        if in_sentence:
            lines[k] = line.replace(":", COLON)
        in_sentence = line == "Returns:" or (in_sentence and bool(line.strip()))


def finish(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Put colons back."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def with_literal_blocks(lines: list[str]) -> list[str]:
    """Indented paragraphs as literal blocks, and everything else without characters that would be markup."""
    made, i, in_source = list[str](), 0, False
    while i < len(lines):
        end = i
        if i and not lines[i - 1].strip():
            while end < len(lines) and (not lines[end].strip() or lines[end].startswith("    ")):
                end += 1
        block = lines[i:end]
        if any(line.strip() for line in block):
            language = "python" if CODE.search("\n".join(block)) else "text"
            made += [f".. code-block:: {language}", "", *block, ""]
            i = end
        else:
            in_source = lines[i].startswith("Source:") or (in_source and lines[i].startswith(" "))
            made.append(plain(lines[i].lstrip() if in_source else lines[i]))
            i += 1
    return made


def plain(line: str) -> str:
    """Asterisks, bars and underscores at the end of a word stand for themselves, but in code and in a field's name."""
    line = LETTER.sub(r"\1\\\2", line)
    name = NAMED.match(line)
    start = name.end() if name else 0
    parts = CODED.split(line[start:])
    return line[:start] + "".join(part if k % 2 else MARKUP.sub(r"\\\g<0>", part) for k, part in enumerate(parts))


def attributes(cls: type) -> list[str]:
    """An `Attributes:` section from the comments behind a data class's fields."""
    source = textwrap.dedent(inspect.getsource(cls))
    found = []
    for field in dataclasses.fields(cls):
        comment = re.search(rf"^    {field.name}:[^#\n]*(?:\([^)#]*)?#\s*(.*)$", source, re.MULTILINE)
        if comment is None:  # a field that takes several lines
            comment = re.search(rf"^    {field.name}: [^#]*?\n    \)\s*#\s*(.*)$", source, re.MULTILINE)
        found.append(f"    {field.name}: {comment[1] if comment else ''}")
    return ["Attributes:", *found] if found else []
