"""Examples as the gallery wants them: in order, with what they print at the end of their docstrings.

What each prints, and a picture of it, are those that `outputs.py` has left.
"""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Any

from outputs import HOURS, OUTPUTS, SHOWN

EXAMPLES = Path(__file__).parent.parent / "examples"
WORDS = """Complete programs, the easy ones first; each runs as it stands, in less than a minute. Pictures and
outputs are those of one run; the tests run all of them anew.
"""
PRINTED = """

.. image:: /images/examples/{name}.png
   :alt: bars of {title}
   :class: printed

What it prints:

.. code-block:: text

{lines}
"""
THUMBNAIL = "\n# sphinx_gallery_thumbnail_path = 'images/examples/{name}.png'\n"


class EasyFirst:
    """The order of examples in the gallery."""

    def __init__(self, folder: str) -> None:
        self._order = [*SHOWN, *HOURS]

    def __call__(self, name: str) -> int:
        """The place of a file."""
        return self._order.index(Path(name).stem)


def setup(app: Any) -> dict[str, Any]:
    """Make the copies before the gallery looks for them."""
    app.connect("config-inited", lambda _, config: copy_examples(Path(config.sphinx_gallery_conf["examples_dirs"])), 1)
    return {"parallel_read_safe": True}


def copy_examples(folder: Path) -> None:
    """Fill a folder with such copies of all examples."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "GALLERY_HEADER.rst").write_text(f"Examples\n========\n\n{WORDS}")
    for path in sorted(EXAMPLES.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.stem not in HOURS:
            text = with_output(text, printed(path.stem)) + THUMBNAIL.format(name=path.stem)
        (folder / path.name).write_text(text, encoding="utf-8")


def printed(name: str) -> str:
    """The picture and the output of an example, as reStructuredText."""
    lines = (OUTPUTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return PRINTED.format(name=name, title=SHOWN[name][0], lines="\n".join(f"   {line}" for line in lines))


def with_output(code: str, more: str) -> str:
    """The same program with more at the end of its docstring, which is reStructuredText."""
    tree = ast.parse(code)
    rest = code.splitlines(keepends=True)[tree.body[0].end_lineno :]
    return f'r"""\n{ast.get_docstring(tree)}\n{more}"""\n{"".join(rest)}'
