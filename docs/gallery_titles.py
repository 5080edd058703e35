"""Examples as the gallery wants them: the first sentence of the docstring becomes the title, the rest the text."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Any

from docstrings import with_literal_blocks

EXAMPLES = Path(__file__).parent.parent / "examples"
WORDS = "Complete programs; each runs as it stands. The pages show them without having run them: the tests do that.\n"


def setup(app: Any) -> dict[str, Any]:
    """Make the copies before the gallery looks for them."""
    app.connect("config-inited", lambda _, config: copy_examples(Path(config.sphinx_gallery_conf["examples_dirs"])), 1)
    return {"parallel_read_safe": True}


def copy_examples(folder: Path) -> None:
    """Fill a folder with titled copies of all examples."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "GALLERY_HEADER.rst").write_text(f"Examples\n========\n\n{WORDS}")
    for path in sorted(EXAMPLES.glob("*.py")):
        (folder / path.name).write_text(titled(path.read_text(encoding="utf-8")), encoding="utf-8")


def titled(code: str) -> str:
    """The same program with its docstring as reStructuredText under a title; one that has a title is left as it is."""
    tree = ast.parse(code)
    docstring = ast.get_docstring(tree)
    if docstring is None:
        raise ValueError("an example begins with a docstring: a sentence that becomes its title, then prose")
    title, _, text = docstring.partition("\n\n")
    if "\n" in title:  # an underline, or a title on two lines
        first, second = title.split("\n", 1)
        if not set(second) - set("=-~"):
            return code
        title = f"{first} {' '.join(second.split())}"
    title, colon, more = title.rstrip(".").partition(": ")  # what comes after a colon is too long for a title
    if colon:
        text = f"{more[0].upper()}{more[1:]}.\n\n{text}"
    rest = code.splitlines(keepends=True)[tree.body[0].end_lineno :]
    text = "\n".join(with_literal_blocks(text.split("\n")))
    return f'r"""\n{title}\n{"=" * len(title)}\n\n{text}\n"""\n{"".join(rest)}'
