"""How the pages are built: `make docs`. Nothing is fetched from the network; the notebooks are run, no example is."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import otlabel  # noqa: E402

project = "otlabel"
author = copyright = "the otlabel authors"
version = release = otlabel.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "docstrings",  # beside this file
    "excerpts",
    "examples_shown",
    "mathml",
    "notebooks",
]
exclude_patterns = ["_build", "templates", "description.md"]  # the latter is for a package index
default_role = "py:obj"  # `name` in a docstring: a link where there is something of that name, else code

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
maximum_signature_line_length = 88
# Classes that nobody makes, whose signature says nothing; and those whose members need no docstrings.
GIVEN = "Assignment BatchAssignment BalancePath Certificate Curated Diagnosis HeadLabels HeadView Status"
autosummary_context = {"given": GIVEN.split(), "undocumented": ["Status"]}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
strip_signature_backslash = True  # so that `labels_` keeps its underscore
toc_object_entries_show_parents = "hide"

sphinx_gallery_conf = {
    "examples_dirs": str(HERE / "_build" / "examples"),  # copies with outputs: see examples_shown.py
    "gallery_dirs": "gallery",
    "plot_gallery": "False",  # it would take minutes: outputs.py has run them
    "within_subsection_order": "examples_shown.EasyFirst",
    "thumbnail_size": (528, 330),
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "backreferences_dir": None,
}

html_theme = "furo"
html_title = f"otlabel {release}"
templates_path = ["templates"]
html_static_path = ["static"]
html_css_files = ["otlabel.css"]
html_js_files = ["copy.js"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
