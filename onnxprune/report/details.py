"""What a report says beyond the run's own document: frozen parts with reasons, and how the scores are spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..axes.analysis import Analysis
from ..planfile import Plan

Floats = np.ndarray[Any, np.dtype[np.float64]]

BINS = 20
# Scores are wide when the largest is so many times the median; the lowest bin takes all below this part of the largest.
WIDE = 10
LOWEST = 1e-6


def report_details(analysis: Analysis, plan: Plan, scores: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Give the fields `frozen` and `histograms` of a report.

    `scores` are (units,) numbers by group id, higher = kept, where units were ranked by any.
    """
    return {"frozen": frozen_parts(analysis), "histograms": histograms(plan, scores or {})}


def frozen_parts(analysis: Analysis) -> list[dict[str, Any]]:
    """List the reasons for which axes are locked, the most parameters first, with the axes and nodes of each.

    `params` counts every weight once per reason; a weight with one locked axis may still be pruned along another.
    """
    axes: dict[str, list[dict[str, Any]]] = {}
    weights: dict[str, dict[str, int]] = {}
    for row in analysis.locked:
        reason, node = _apart(row.reason)
        place = {"initializer": row.initializer, "axis": row.axis, "size": row.size, "node": node}
        axes.setdefault(reason, []).append(place)
        shape = analysis.model.tensors[row.initializer].dims
        weights.setdefault(reason, {})[row.initializer] = math.prod(shape)
    rows = [
        {"reason": reason, "params": sum(weights[reason].values()), "axes": found} for reason, found in axes.items()
    ]
    return sorted(rows, key=lambda row: (-sum(weights[str(row["reason"])].values()), row["reason"]))


def _apart(reason: str) -> tuple[str, str | None]:
    """Divide a reason from the node in parentheses that ends it."""
    why, parenthesis, node = reason.rpartition(" (")
    return (why, node[:-1]) if parenthesis and node.endswith(")") else (reason, None)


def histograms(plan: Plan, scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Count kept and removed units per bin of their score, by group: `edges` (bins + 1), `kept` and `removed` (bins).

    `scale` is "log" for bins whose edges rise by a factor: scores that are spread over orders of magnitude. Groups of
    which nothing was removed are left out.
    """
    found = {}
    for group in plan.groups:
        if group.removed and group.id in scores:
            values = np.asarray(scores[group.id], dtype=np.float64)
            found[group.id] = _histogram(values, group.removed)
    return found


def _histogram(values: Floats, removed: Sequence[int]) -> dict[str, Any]:
    gone = np.zeros(len(values), dtype=bool)
    gone[list(removed)] = True
    n_bins = min(BINS, max(4, len(values) // 2))
    wide = values.min() >= 0 and values.max() > WIDE * np.median(values) > 0
    if wide:
        low = max(values[values > 0].min(), values.max() * LOWEST)
        values = np.maximum(values, low)
        edges = np.geomspace(low, values.max(), n_bins + 1)
        edges[0], edges[-1] = low, values.max()
    else:
        edges = np.histogram_bin_edges(values, bins=n_bins)
    return {
        "scale": "log" if wide else "linear",
        "edges": [float(f"{edge:.6g}") for edge in edges],
        "kept": np.histogram(values[~gone], edges)[0].tolist(),
        "removed": np.histogram(values[gone], edges)[0].tolist(),
    }
