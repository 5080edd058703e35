"""Excerpts of what a search finds where the pages are files, of which a browser lets none read another."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

NAME = "excerpts.js"
BULKY = re.compile(r'<svg.*?</svg>|<math.*?</math>|<button.*?</button>|src="data:[^"]*"', re.DOTALL)
SCRIPT = """"use strict";
// The pages, for excerpts of what a search finds; asked for where the browser refuses to read them.
const PAGES = %s;
if (location.protocol === "file:") {
  const there = window.fetch;
  window.fetch = (url) => {
    const page = PAGES[String(url).replace(/^(\\.\\/)?/, "").split("#")[0]];
    return page === undefined ? there(url) : Promise.resolve(new Response(`<div role="main">${page}</div>`));
  };
}
"""


def setup(app: Any) -> dict[str, Any]:
    """Keep what pages hold; write it once all are there."""
    pages: dict[str, str] = {}

    def keep(app: Any, name: str, template: str, context: dict[str, Any], tree: Any) -> None:
        if tree is not None:
            pages[app.builder.get_target_uri(name)] = BULKY.sub("", context["body"])
        elif name == "search":
            app.add_js_file(NAME)

    def write(app: Any, error: Exception | None) -> None:
        if error is None and app.builder.format == "html":
            Path(app.outdir, "_static", NAME).write_text(SCRIPT % json.dumps(pages), encoding="utf-8")

    app.connect("html-page-context", keep)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
