"""Equations as MathML, which browsers draw themselves: no script, nothing from elsewhere."""

from __future__ import annotations

from typing import Any

from docutils import nodes

try:
    from latex2mathml.converter import convert
except ImportError:  # `make docs` installs it; without it equations are shown as they are written
    convert = None


def setup(app: Any) -> dict[str, Any]:
    """The renderer of equations in HTML."""
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True}


def inline(translator: Any, node: nodes.math) -> None:
    """Within a sentence."""
    translator.body.append(made(translator, node.astext(), "inline"))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    """By itself."""
    translator.body.append(f'<div class="equation">{made(translator, node.astext(), "block")}</div>')
    raise nodes.SkipNode


def made(translator: Any, latex: str, display: str) -> str:
    """MathML, or the text that it would be made of."""
    return f"<code>{translator.encode(latex)}</code>" if convert is None else convert(latex, display=display)
