"""Plots as SVG that takes its colors and fonts from the page, the same bytes for the same plot."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colors that matplotlib is told, and the custom properties of the page that replace them.
INK, MUTED, LINE, KEPT, GONE, CARD, MARK = (f"#0{k}0{k}0{k}" for k in range(1, 8))
_PROPERTIES = {INK: "ink", MUTED: "muted", LINE: "line", KEPT: "kept", GONE: "gone", CARD: "card", MARK: "mark"}

# Units of a plot's coordinates: about pixels on a phone, half as large again on a desk.
WIDTH = 380
_DPI = 72

_STYLE = {
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "figure.facecolor": "none",
    "font.size": 10,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.edgecolor": LINE,
    "legend.facecolor": CARD,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "onnxprune",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


@contextmanager
def themed(height: float) -> Iterator[Figure]:
    """Give an empty figure of the page's width and `height` units, in the page's style."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(cast("Any", _STYLE)):
        yield Figure(figsize=(WIDTH / _DPI, height / _DPI), layout="constrained")


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Give a figure as an inline SVG element with an alternative text; `name` keeps its ids apart from others'."""
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' id="', f' id="{name}-', text)
    text = re.sub(r'(url\(|xlink:href=")#', rf"\1#{name}-", text)
    text = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font-size: \1px", text)
    for color, name_of in _PROPERTIES.items():
        text = text.replace(color, f"var(--{name_of})")
    head = re.match(r"<svg[^>]*>", text)
    assert head is not None
    box = re.search(r'viewBox="([^"]*)"', head[0])
    assert box is not None
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box[1]}" '
        f'role="img" aria-label="{escape(description, quote=True)}">'
    )
    return opening + re.sub(r"\n\s*", "\n", text[head.end() :]).strip()
