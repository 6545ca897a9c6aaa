"""The documentation as a site that needs no network: python -m sphinx -W -c docs . build/site  (extra `docs`).

The source folder is the repository, so that links between pages, samples and code are the same here and in a checkout.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from onnxprune import __version__  # noqa: E402  the checkout, not an installed one

project = "onnxprune"
project_copyright = "the onnxprune authors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
include_patterns = ["docs/*.md", "docs/*.rst", "samples/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
root_doc = "docs/index"

html_theme = "furo"
html_title = f"onnxprune {version}"
html_show_sourcelink = False
html_copy_source = False

nitpicky = True
myst_heading_anchors = 4  # as GitHub makes them

default_role = "code"
autodoc_typehints = "none"  # signatures have names and defaults; the text has shapes, types and errors
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_default_options = {"members": True, "exclude-members": "__init__, __new__"}

_LITERAL = re.compile(r"(`[^`]*`)")
_ITEM = re.compile(r"^\s*([-*]|\d+\.) ")


def to_rst(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Turn a docstring, which is Markdown, into what autodoc reads: lists stand alone, and stars are stars."""
    result: list[str] = []
    for line in lines:
        parts = _LITERAL.split(line)
        # Every second part is a literal, which has no markup inside.
        parts[::2] = [re.sub(r"([*|]|_\b)", r"\\\1", part) for part in parts[::2]]
        if _ITEM.match(line):
            parts[0] = parts[0].replace("\\*", "*", 1)
            if result and result[-1].strip() and not _ITEM.match(result[-1]) and not result[-1].startswith("  "):
                result.append("")
        result.append("".join(parts))
    lines[:] = result


def setup(app: Any) -> None:
    """Register the hook."""
    app.connect("autodoc-process-docstring", to_rst)
