"""HTML out of values: everything that is not markup of ours is escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

NOTHING = "-"
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Number:
    """A figure in a table: what is shown, what it is sorted by, and how hot it is in a heat map, from 0 to 1."""

    text: str
    value: float | None = None
    level: float | None = None


@dataclass(frozen=True)
class Note:
    """A long text in a table, which may wrap."""

    text: str


Cell = str | Number | Note


def text(value: object) -> str:
    """Escape a value."""
    return escape(str(value), quote=True)


def section(name: str, title: str, *parts: str) -> str:
    """Give a section with a heading that its name links to."""
    inside = "\n".join(part for part in parts if part)
    heading = f'<h2 id="{name}-title">{text(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}\n{inside}</section>'


def paragraph(words: str, kind: str = "") -> str:
    """Give a paragraph of plain text."""
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def plot(svg: str, caption: str) -> str:
    """Give a plot with a caption."""
    return f"<figure>{svg}<figcaption>{text(caption)}</figcaption></figure>"


def table(name: str, caption: str, head: Sequence[str], rows: Iterable[Sequence[Cell]], *, kind: str = "") -> str:
    """Give a table that the page's script makes sortable, and filterable where it is long.

    The first column heads its rows; a column whose cells are numbers is set flush right. A
    last column of empty notes is left out.
    """
    listed = [list(row) for row in rows]
    if listed and all(row[-1] == Note("") for row in listed):
        head, listed = head[:-1], [row[:-1] for row in listed]
    numeric = [bool(listed) and all(isinstance(row[k], Number) for row in listed) for k in range(len(head))]
    heads = "".join(f'<th scope="col"{_flush(n)}>{text(h)}</th>' for h, n in zip(head, numeric, strict=True))
    body = "\n".join(f"<tr>{''.join(_cell(c, first=k == 0) for k, c in enumerate(row))}</tr>" for row in listed)
    found = _filter(name, caption) if len(listed) > LONG else ""
    return (
        f'{found}<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table id="{name}" class="{kind}" data-sortable><caption>{text(caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


LONG = 10


def _filter(name: str, caption: str) -> str:
    return (
        f'<form class="filter" id="{name}-filter" role="search" aria-label="Filter: {text(caption)}" hidden>'
        f'<label>Filter <input type="search" autocomplete="off"></label><output aria-live="polite"></output></form>\n'
    )


def _flush(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _cell(cell: Cell, *, first: bool) -> str:
    if isinstance(cell, Note):
        return f'<td class="note">{text(cell.text)}</td>'
    if isinstance(cell, Number):
        value = math.nan if cell.value is None else cell.value
        heat = f' style="--level:{cell.level:.3f}"' if cell.level is not None else ""
        return f'<td class="n" data-value="{value:.12g}"{heat}>{text(cell.text)}</td>'
    return f'<th scope="row">{_breakable(cell)}</th>' if first else f"<td>{text(cell)}</td>"


def _breakable(name: str) -> str:
    """Let a long name break after its separators."""
    return re.sub(r"([/._:])", r"\1<wbr>", text(name)) if len(name) > 12 else text(name)


def folded(summary: str, inside: str) -> str:
    """Give something that opens on a click."""
    return f"<details><summary>{text(summary)}</summary>{inside}</details>"


def quantity(n: float) -> str:
    """Spell a number in four digits or less, unbroken: 1234567 as 1.235 M."""
    for step, letter in _STEPS:
        if abs(n) >= 0.9995 * step:
            return f"{n / step:.4g}\N{NO-BREAK SPACE}{letter}"
    return f"{n:.4g}"


def percent(fraction: float | None) -> str:
    """Spell a fraction."""
    return NOTHING if fraction is None else f"{100 * fraction:.1f} %"


def figure(value: float | None) -> str:
    """Spell a measured figure."""
    return NOTHING if value is None else f"{value:.4g}"
