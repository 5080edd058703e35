"""The notebooks of examples/, run while the pages are built: each becomes a page, and a notebook with its outputs.

Notebooks run one after the other in a process beside this one, each in an empty folder. What a notebook would show of
the last expression of a cell is shown: a table, a picture, or its text.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parent.parent / "examples" / "notebooks"
BUILT = Path(__file__).parent / "notebooks"  # pages
LINK = "../../docs/"  # from where the notebooks are to the other pages
SHOWN = (("text/html", "_repr_html_"), ("image/png", "_repr_png_"))  # the first that there is


def setup(app: Any) -> dict[str, Any]:
    """Write the pages before any is read."""
    app.connect("config-inited", lambda *_: build())
    return {"parallel_read_safe": True}


def build() -> None:
    """Run all notebooks; the pages, and the notebooks with their outputs, replace those of the last build."""
    shutil.rmtree(BUILT, ignore_errors=True)
    BUILT.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, map(str, sys.path)))}
    done = subprocess.run([sys.executable, __file__], env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a notebook fails: {done.stderr}")
    for path in BUILT.glob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        path.with_suffix(".md").write_text(page(notebook, path.name), encoding="utf-8")


def run_all() -> None:
    """The notebooks with their outputs."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        print(f"{path.name}:", file=sys.stderr)  # the last one named is the one that fails
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            run = executed(json.loads(path.read_text(encoding="utf-8")))
        (BUILT / path.name).write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """The same with the outputs of its cells."""
    names: dict[str, Any] = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = value_of("".join(cell["source"]), names)
        outputs: list[dict[str, Any]] = []
        if printed.getvalue():
            outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue()})
        if value is not None:
            told = {"data": shown(value), "metadata": {}, "execution_count": number}
            outputs.append({"output_type": "execute_result", **told})
        cell |= {"execution_count": number, "outputs": outputs}
    return notebook


def value_of(code: str, names: dict[str, Any]) -> Any:
    """Run a cell; what its last line is worth, if that is an expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


def shown(value: Any) -> dict[str, str]:
    """What a notebook keeps of a value: its text, and the first of the richer forms."""
    data = {"text/plain": repr(value) if len(repr(value)) < 10_000 else f"<{type(value).__name__}>"}
    for kind, name in SHOWN:
        rich = getattr(value, name, lambda: None)()
        if rich is not None:
            data[kind] = rich if isinstance(rich, str) else base64.b64encode(rich).decode()
            break
    return data


def page(notebook: dict[str, Any], name: str) -> str:
    """Markdown of all cells and outputs."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source.replace(LINK, "../"))
            continue
        parts.append(f"```py\n{source}\n```")
        parts += [part for output in cell["outputs"] for part in _output(output)]
    parts.append(f"The notebook with these outputs: {{download}}`{name}`.")
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> list[str]:
    data = output.get("data", {"text/plain": output.get("text", "")})
    if html := data.get("text/html"):
        return [f'````{{raw}} html\n<div class="output">{html}</div>\n````']
    if png := data.get("image/png"):
        return [
            f'````{{raw}} html\n<div class="output"><img alt="figure" src="data:image/png;base64,{png}"></div>\n````'
        ]
    return [f"```text\n{data['text/plain'].rstrip()}\n```"]


if __name__ == "__main__":
    run_all()
