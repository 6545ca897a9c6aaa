"""The page of a run: one HTML file that needs nothing else, for screens of any size and for paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .html import text
from .sections import prune_sections, sensitivity_sections

Document = Mapping[str, Any]

# Nothing may be fetched: the page shows what is in it.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


def page(document: Document) -> str:
    """Give the text of the page for the document of a `prune` or `sensitivity` run."""
    model = Path(str(document["model"])).name
    title = f"{model}: {_TITLES[document['command']]}"
    made = prune_sections if document["command"] == "prune" else sensitivity_sections
    sections = [s for s in made(document) if s.content]
    links = "".join(f'<a href="#{s.name}">{text(s.title)}</a>' for s in sections)
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{text(title)}</title>\n<style>\n{_part('page.css')}</style>\n</head>\n<body>",
            f"<header><h1>{text(title)}</h1>{''.join(_head(document))}</header>",
            f'<nav aria-label="Sections">{links}</nav>\n<main>',
            *(s.content for s in sections),
            f"</main>\n<footer><p>{_footer(document)}</p></footer>",
            f"<script>\n{_part('page.js')}</script>\n</body>\n</html>\n",
        ]
    )


_TITLES = {"prune": "pruned", "sensitivity": "sensitivity"}


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _head(document: Document) -> Iterator[str]:
    verdict = document.get("verification")
    if verdict is not None:
        kind, word = ("good", "verified") if verdict["ok"] else ("bad", "verification FAILED")
        yield f'<p class="verdict {kind}">{word}</p>'
    elif document["command"] == "prune":
        yield '<p class="verdict">not verified</p>'
    wrote = document.get("output")
    where = f"{document['model']}, written to {wrote}" if wrote else f"{document['model']}"
    yield f'<p class="muted">{text(where)}</p>'


def _footer(document: Document) -> str:
    plan = document.get("plan") or {}
    source = document.get("source_sha256") or plan.get("source_sha256") or ""
    parts = [f"onnxprune {document.get('onnxprune', '')}".strip()]
    parts += [f"model sha256 {source}"] if source else []
    parts += [f"plan sha256 {plan['sha256']}"] if plan.get("sha256") else []
    return "<br>".join(text(part) for part in parts)
