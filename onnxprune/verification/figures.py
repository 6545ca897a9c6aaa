"""Comparisons as the figures and checks of a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..data import InputSpec
from ..graph.model import Model
from .checks import Check
from .compare import Comparison, OutputComparison

_SCORES = ("logit", "score", "prob", "class")


SATURATING = ("Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Erf")
PASSING = ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Concat", "Split", "Gather")
RESOLUTION = 8 * float(np.finfo(np.float32).eps)


def exact_figures(twin: Comparison, moved: Comparison, rtol: float, atol: float) -> dict[str, Any]:
    """Give the masked-twin comparison; `moved` compares the original with the twin."""
    rows = {}
    for output, change in zip(twin.outputs, moved.outputs, strict=True):
        rows[output.name] = {
            "max_abs": output.max_abs,
            "max_rel": output.max_rel,
            "mismatch": output.mismatch,
            "varies": output.varies,
            "moved": change.max_rel > 0 or change.mismatch > 0,
        }
    return {
        "max_abs": max((output.max_abs for output in twin.outputs), default=0.0),
        "max_rel": max((output.max_rel for output in twin.outputs), default=0.0),
        "rtol": rtol,
        "atol": atol,
        "outputs": rows,
    }


def full_scales(model: Model) -> dict[str, float]:
    """Give the largest magnitude that a graph output may reach, where the operator that makes it says so."""
    makers = {name: node for node in model.skeleton.graph.node for name in node.output if name}
    found = {}
    for output in model.skeleton.graph.output:
        node = makers.get(output.name)
        while node is not None and node.op_type in PASSING and node.input:
            node = makers.get(node.input[0])
        if node is not None and node.op_type in SATURATING:
            found[output.name] = 1.0
    return found


def check_twin(
    twin: Comparison, moved: Comparison, rtol: float, atol: float, full_scale: Mapping[str, float] | None = None
) -> Check:
    """Judge the comparison with the masked twin, and say where it proves little.

    Beside the twin's own magnitude count a few rounding steps of a float32 at the original's, or at the `full_scale` of
    an output: a Sigmoid is no finer than that near 0, and its outputs may all have come to lie there.
    """
    wrong = [
        _difference(output, rtol)
        for output, change in zip(twin.outputs, moved.outputs, strict=True)
        if not output.within(rtol, atol + RESOLUTION * max(change.scale, (full_scale or {}).get(output.name, 0.0)))
    ]
    if wrong:
        return Check("masked twin", False, "; ".join(wrong))
    worst = twin.worst
    notes = [f"largest relative difference {worst.max_rel:.1e}"] if worst is not None else []
    constant = [repr(output.name) for output in twin.outputs if output.varies is False]
    if constant:
        notes.append(f"proves little for {', '.join(constant)}, constant on this data")
    still = [repr(o.name) for o in moved.outputs if o.max_abs == 0 and o.mismatch == 0]
    if still and len(still) == len(moved.outputs):
        notes.append("nothing removed shows in any output on this data")
    return Check("masked twin", True, "; ".join(notes))


def _difference(output: OutputComparison, rtol: float) -> str:
    if output.problem:
        return f"output {output.name!r}: {output.problem}"
    if output.mismatch > rtol:
        return f"output {output.name!r}: {output.mismatch:.1%} of the entries differ"
    return f"output {output.name!r} differs by {output.max_abs:.2e}, {output.max_rel:.1e} of its range (rtol {rtol:g})"


def agreement_figures(comparison: Comparison, specs: Sequence[InputSpec], n_feeds: int) -> dict[str, Any]:
    """Give the agreement with the original: per output, and the worst over outputs."""
    rows: dict[str, dict[str, Any]] = {}
    for output in comparison.outputs:
        rows[output.name] = {
            "cosine": output.cosine,
            "relative_error": output.relative_error,
            "max_abs": output.max_abs,
            "max_rel": output.max_rel,
            "mismatch": output.mismatch,
            "top1": output.top1 if _scores_classes(output, specs) else None,
            "problem": output.problem,
        }
    return {
        "n_feeds": n_feeds,
        "cosine": _extreme(min, rows, "cosine"),
        "relative_error": _extreme(max, rows, "relative_error"),
        "top1": _extreme(min, rows, "top1"),
        "outputs": rows,
    }


def _extreme(choose: Any, rows: dict[str, dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows.values() if row[key] is not None]
    return float(choose(values)) if values else None


def _scores_classes(output: OutputComparison, specs: Sequence[InputSpec]) -> bool:
    """Guess whether rows are class scores: (n, classes), or (n, steps, classes) of a model over tokens."""
    if output.rank == 2:
        return True
    named = any(word in output.name.lower() for word in _SCORES)
    return output.rank == 3 and (named or any(spec.dtype.kind in "iu" for spec in specs))
