"""Anchors: tensors inside the model that are to stay near the original's, so that few samples say a lot.

A hundred samples have a hundred outputs, and weights enough to learn them by heart. Inside the model the same samples
have thousands of values that should be what they were.
Source: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, section 2.2, with many hints and no regressor,
since what stays of a tensor stands for what it stood for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..axes.analysis import Analysis, Keep
from ..calibration.probe import Probe
from ..recover.outputs import spread

Array = np.ndarray[Any, Any]
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedMatMul", "Einsum", "LSTM", "GRU", "RNN"})
MOST = 12
LEAST_ERROR = 1e-7
MOST_ERROR = 1.0


@dataclass(frozen=True)
class Anchor:
    """A tensor of both models: what stays of it along each axis that shrinks, and the variance of that."""

    name: str
    keeps: dict[int, Keep]
    variance: float = 1.0

    def cut(self, array: Array) -> Array:
        """Give what the smaller model should have for the original's tensor."""
        for axis, keep in self.keeps.items():
            array = np.compress(keep, array, axis=axis)
        return array


def candidates(analysis: Analysis, alive: Keep, probe: Probe, smaller: Probe, taken: Sequence[str]) -> list[Anchor]:
    """List the outputs of products that both models have, less those `taken`."""
    found = []
    for node in probe.flat.nodes:
        name = next((o for o in node.output if o), "")
        value = analysis.collection.values.get(name)
        if node.op_type not in PRODUCTS or value is None or value.constant or name in taken:
            continue
        if probe.why_hidden(name) or smaller.why_hidden(name):
            continue
        keeps = {k: analysis.keep(axis.id, alive) for k, axis in enumerate(value.axes)}
        found.append(Anchor(name, {k: keep for k, keep in keeps.items() if not keep.all()}))
    return found


def chosen(
    anchors: Sequence[Anchor], made: Sequence[Sequence[Array]], wanted: Sequence[Sequence[Array]]
) -> list[Anchor]:
    """Choose at most 12, spread over the model, of those that differ and yet are comparable.

    `made` and `wanted` have the tensors of every feed, in the smaller model and in the original. Left out is what has
    not changed, what has nothing to do with the original's (there the two order their elements differently), and what
    is empty for some feed, as in a branch that it does not take.
    """
    found = []
    for k, anchor in enumerate(anchors):
        goal = [anchor.cut(row[k]) for row in wanted]
        if any(g.shape != row[k].shape or g.dtype.kind != "f" or not g.size for g, row in zip(goal, made, strict=True)):
            continue
        variance = spread([g.astype(np.float64) for g in goal])
        wrong = float(np.mean([np.square(g - row[k]).mean() for g, row in zip(goal, made, strict=True)]))
        if variance > 0 and LEAST_ERROR < wrong / variance < MOST_ERROR:
            found.append(Anchor(anchor.name, anchor.keeps, variance))
    at = np.unique(np.linspace(0, len(found) - 1, min(MOST, len(found))).round().astype(int))
    return [found[k] for k in at]
