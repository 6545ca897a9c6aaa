"""The curve of a search for people: one line per model that was made and measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tables import Page

_SIZES = {"macs": "MACs", "params": "parameters", "bytes": "weight bytes"}


def print_trade(page: Page, trade: Mapping[str, Any]) -> None:
    """Print a curve in the form of `prune --json`, from the largest model to the least."""
    from .tables import percent

    timed = trade["measure"] == "latency"
    head = (f"tried: {_SIZES[trade['by']]} left", "latency" if timed else "your metric", "")
    rows = []
    for point in reversed(trade["points"]):
        spelled = percent(point["value"]) if timed else f"{point['value']:.6g}"
        verdict = "good enough" if point["holds"] else "too slow" if timed else "too low"
        chosen = point["holds"] and point["fraction"] == trade["chosen"]
        rows.append((percent(point["fraction"]), spelled, "chosen" if chosen else verdict))
    page.table(head, rows)
