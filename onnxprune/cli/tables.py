"""Text for people: tables with rich, figures with units. Only what `survey` and verdicts say, nothing computed."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .result import result_stream

UNSEEN_WIDTH = 120
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Page:
    """Collects what a command prints; `text` is empty-line separated and fits the terminal."""

    def __init__(self) -> None:
        seen = result_stream().isatty()
        width = None if seen or os.environ.get("COLUMNS") else UNSEEN_WIDTH
        self._sink = io.StringIO()
        self._console = Console(
            file=self._sink, width=width, force_terminal=seen, highlight=False, markup=False, emoji=False
        )

    def line(self, text: str = "", *, style: str | None = None) -> None:
        """Print one paragraph, wrapped at spaces."""
        self._console.print(Text(text, style=style or ""))

    def item(self, text: str, *, indent: int = 2, style: str | None = None) -> None:
        """Print one indented paragraph with all its lines under each other."""
        self._console.print(Padding(Text(text, style=style or "", overflow="fold"), (0, 0, 0, indent)))

    def labeled(self, label: str, text: str, *, indent: int = 2, width: int = 10) -> None:
        """Print a label and a paragraph beside it."""
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=width, no_wrap=True)
        grid.add_column(overflow="fold", ratio=1)
        grid.add_row(Text(label, style="dim"), Text(text, overflow="fold"))
        self._console.print(Padding(grid, (0, 0, 0, indent)))

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
        """Print a table whose first `left` columns are text and the others figures."""
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for k, name in enumerate(head):
            table.add_column(name, justify="left" if k < left else "right", overflow="fold", no_wrap=k >= left)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table)

    def listing(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], details: Sequence[Sequence[tuple[str, str]]]
    ) -> None:
        """Print a table with labeled lines under each row; the second column is text, those after it figures."""
        widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
        room = self._console.width - sum(widths[1:]) - 2 * (len(head) - 1)
        widths[0] = max(8, min(widths[0], room))
        self.line(_aligned(head, widths), style="bold")
        for row, detail in zip(rows, details, strict=True):
            long = len(row[0]) > widths[0]
            if long:
                self.item(row[0], indent=0, style="cyan")
            text = Text(_aligned(["" if long else row[0], *row[1:]], widths))
            text.stylize("cyan", 0, widths[0])
            self._console.print(text, soft_wrap=True)
            for label, line in detail:
                self.labeled(label, line)

    @property
    def text(self) -> str:
        """Everything printed so far, without trailing spaces."""
        return "\n".join(line.rstrip() for line in self._sink.getvalue().splitlines()) + "\n"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [c.ljust(w) if k < 2 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))]
    return "  ".join(cells).rstrip()


def quantity(n: float) -> str:
    """Spell a number in four digits or less: 1234567 as 1.235 M."""
    for step, letter in _STEPS:
        if abs(n) >= 0.9995 * step:
            return f"{n / step:.4g} {letter}"
    return f"{n:.4g}"


def storage(n: float) -> str:
    """Spell a number of bytes."""
    text = quantity(n)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def percent(fraction: float | None) -> str:
    """Spell a fraction."""
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def plural(n: int, noun: str) -> str:
    """Count a noun that takes an s: "1 group", "2,000 groups"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def some(names: Sequence[str], most: int = 3) -> str:
    """List the first few names."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def shapes_note(shapes: Mapping[str, Sequence[int]]) -> str:
    """Say what input shapes the MACs hold for."""
    listed = ", ".join(f"{name}={','.join(map(str, shape))}" for name, shape in shapes.items())
    return f"MACs for {listed} (other sizes: --input-shape)"


def change_rows(document: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of the table before / after / ratio, for figures as `verify --json` has them."""
    rows = []
    for metric, spell in (("params", quantity), ("macs", quantity), ("bytes", storage)):
        row = document[metric]
        after = "-" if row["after"] is None else spell(row["after"])
        rows.append((_LABELS[metric], spell(row["before"]), after, percent(row["ratio"])))
    latency = document.get("latency_ms")
    if latency:
        rows.append(("latency", f"{latency['before']:.3g} ms", f"{latency['after']:.3g} ms", percent(latency["ratio"])))
    figure = document.get("metric")
    if figure:
        rows.append(("your metric", f"{figure['before']:.6g}", f"{figure['after']:.6g}", percent(figure["ratio"])))
    return rows


_LABELS = {"params": "parameters", "macs": "MACs", "bytes": "weight bytes"}


def recovery_note(recovery: Mapping[str, Any]) -> str:
    """Say what repairing did: how many layers, and the error at the outputs before and after."""
    layers = recovery["layers"]
    done = [row for row in layers if row["how"] != "none"]
    text = f"repaired {len(done)} of {plural(len(layers), 'layer')} ({recovery['recover']})"
    before, after = recovery["error_before"], recovery["error_after"]
    if before is None or after is None:
        return text
    count = plural(recovery["held_out"] or recovery["samples"], "feed")
    where = f"{count} held out" if recovery["held_out"] else count
    text = f"{text}; error at the outputs {before:.3g} before, {after:.3g} after, of their variance, on {where}"
    tuning = recovery.get("tuning")
    if tuning is None:
        return text
    took = f"tuned by {plural(tuning['steps'], 'step')}: {tuning['error_before']:.3g} to {tuning['error_after']:.3g}"
    return f"{text}; {took}{'' if tuning['kept'] else ', no better, so undone'}"
