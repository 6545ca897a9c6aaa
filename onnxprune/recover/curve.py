"""Scores of one group: the order in which its units go, and what each one costs when it goes.

Costs come from the products that read the units. Where groups are to be compared, costs are brought to one scale: the
model is run without the cheapest part of the group, and the error at its outputs says what that part costs in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..axes.analysis import Analysis
from ..axes.groups import Group
from ..axes.labels import Labels
from ..criteria.data import Consumer, DataCriterion, Surgeon
from ..criteria.registry import Criterion, Rows
from ..criteria.units import group_scores
from .masked import masked_weights
from .outputs import Outputs
from .products import Array, Product

BATCHES = 32
CHECKPOINTS = (0.3, 0.6, 0.9)
WORST = 1e6
LEAST = 1e-12
UNSEEN = 1e12


@dataclass(frozen=True, eq=False)
class Reads:
    """How matrix `part` of a product reads the units of one group."""

    product: Product
    part: int
    consumer: Consumer = field(repr=False)

    @cached_property
    def energy(self) -> float:
        """Energy of the output, without its mean where that is known: tr(W H W^T)."""
        c = self.consumer
        if c.gram is not None and c.mean is not None:
            return float(np.einsum("of,fg,og->", c.weight, c.centered(), c.weight, optimize=True))
        assert c.square is not None
        return float((np.square(c.weight) @ c.square).sum())


def score_group(
    analysis: Analysis,
    group: Group,
    criterion: DataCriterion,
    reads: Sequence[Reads],
    *,
    outputs: Outputs | None,
    seed: int,
) -> tuple[Rows, dict[str, Any]]:
    """Score the units of a group: (size,) numbers, higher is worth keeping, and what was used.

    With `outputs` scores are parts of the error there. Units that no weight reads with data are scored by l2.
    """
    used: dict[str, Any] = {"criterion": criterion.name}
    curve = _Curve(analysis, group, outputs)
    if not reads:
        scores, _ = group_scores(analysis, group, "l2", seed)
        used |= {"instead": "l2", "why": "no weight reads its units with data"}
        return curve.of_fixed(scores), used
    if criterion.name == "obs":
        return curve.one_by_one(reads), used
    assert criterion.cost is not None
    scores = np.zeros(group.size)
    for read in reads:
        cost = criterion.cost(read.consumer)
        scale = read.energy if criterion.relative else float(np.abs(cost).mean())
        scores += cost / scale if scale > 0 else 0.0
    return curve.of_fixed(scores), used


def score_unseen(analysis: Analysis, group: Group, criterion: Criterion, seed: int) -> tuple[Rows, dict[str, Any]]:
    """Score units that no sample reaches, such as those in a branch that is not taken: by l2, and above all others.

    Nothing is known about what they are worth, so they go last.
    """
    scores, _ = group_scores(analysis, group, "l2", seed)
    why = "no sample reaches what reads its units, so they go last"
    return scores + UNSEEN, {"criterion": criterion.name, "instead": "l2", "why": why}


class _Curve:
    """What the first units of a group cost, measured at the outputs at a few points, where there are outputs."""

    def __init__(self, analysis: Analysis, group: Group, outputs: Outputs | None) -> None:
        self.analysis, self.group, self.outputs = analysis, group, outputs
        self.marks = sorted({m for c in CHECKPOINTS if 0 < (m := round(c * group.size)) < group.size})
        self.measured: list[tuple[int, float]] = []

    def of_fixed(self, scores: Rows) -> Rows:
        """Scale scores that do not depend on what else is gone."""
        if self.outputs is None:
            return scores
        order = np.argsort(scores, kind="stable")
        for mark in self.marks:
            self._measure(order[:mark], {})
        return self._spread(order, self._through(np.maximum(scores[order], 0.0)))

    def one_by_one(self, reads: Sequence[Reads]) -> Rows:
        """Remove units from the cheapest on, and score each by what it cost when it went.

        What a unit is worth depends on which others are still there: of two that say the same, one is free.
        """
        surgeons = {read: Surgeon(read.consumer) for read in reads}
        left = np.ones(self.group.size, dtype=bool)
        order: list[int] = []
        costs: list[float] = []
        while left.any():
            cost = np.zeros(self.group.size)
            for read, surgeon in surgeons.items():
                cost += surgeon.costs() / max(read.energy, LEAST)
            take = self._cheapest(cost, left)
            order += take.tolist()
            costs += cost[take].tolist()
            left[take] = False
            for surgeon in surgeons.values() if left.any() else ():
                surgeon.remove(take)
            if self.outputs is not None and any(len(order) - len(take) < m <= len(order) for m in self.marks):
                self._measure(np.array(order), surgeons)
        steps = np.maximum.accumulate(np.array(costs))
        return self._spread(np.array(order), steps if self.outputs is None else self._through(steps))

    def _cheapest(self, cost: Rows, left: Array) -> Labels:
        """Give the units to take next: a part of what is there, as many from every block."""
        each = max(1, self.group.width // BATCHES)
        here = np.flatnonzero(left)
        ranked = here[np.lexsort((-here, cost[here]))]
        blocks = self.group.block[ranked]
        chosen = [ranked[blocks == b][:each] for b in range(self.group.blocks)]
        return np.asarray(np.concatenate(chosen))

    def _measure(self, removed: Labels, surgeons: dict[Reads, Surgeon]) -> None:
        """Run the model without units, the products that read them repaired."""
        if self.outputs is None or len(removed) >= self.group.size:
            return
        model = self.analysis.model
        weights = masked_weights(self.analysis, self.analysis.alive({self.group.id: removed.tolist()}))
        matrices: dict[Product, Array] = {}
        shifts: dict[Product, Array] = {}
        for read, surgeon in surgeons.items():
            p = read.product
            if p not in matrices:
                matrices[p] = p.matrices(weights.get(p.weight, model.array(p.weight)))
                shifts[p] = np.zeros(p.shape[:2])
            matrices[p][read.part] = surgeon.weight
            shifts[p][read.part] = (read.consumer.weight - surgeon.weight) @ read.consumer.mean
        for p, values in matrices.items():
            weights[p.weight] = p.stored(values, model.array(p.weight))
            if p.bias is not None:
                held = weights.get(p.bias.name, model.array(p.bias.name))
                weights[p.bias.name] = p.bias.shifted(held, p.per_bias(shifts[p]))
        self.measured.append((len(removed), min(self.outputs.distance(weights), WORST)))

    def _through(self, costs: Rows) -> Rows:
        """Scale what each removal costs so that the sums pass through what was measured; never falling."""
        steps = costs.copy()
        reached, last, factor = 0.0, 0, 1.0
        for mark, distance in self.measured:
            here = float(costs[last:mark].sum())
            gained = max(distance - reached, LEAST)
            factor = gained / here if here > 0 else 1.0
            steps[last:mark] = costs[last:mark] * factor if here > 0 else gained / (mark - last)
            reached, last = max(reached, distance), mark
        steps[last:] = costs[last:] * factor
        return np.asarray(np.maximum.accumulate(np.maximum(steps, LEAST)))

    def _spread(self, order: Labels, steps: Rows) -> Rows:
        scores = np.empty(self.group.size)
        scores[order] = steps
        return scores
