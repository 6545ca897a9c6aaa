"""Put channels in an order under which N:M keeps more: the model computes the same, and loses less when it is cut.

N:M keeps the N largest of every M consecutive input channels. The order of channels inside a model is free wherever
producers, consumers and all that lies between can be reordered together (`rewrite.permute`); it is chosen for all
consumers of a group at once (`masks.permutation_search`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..axes.analysis import Analysis, analyze_model
from ..axes.groups import Group
from ..errors import OptionError
from ..graph.model import Model
from ..masks.groups import NofM
from ..masks.patterns import parse_pattern
from ..masks.permutation_search import kept_magnitude, search_order
from ..rewrite.permute import Movement, Symmetries, permute_units
from .choice import DEFAULT_KINDS
from .settings import check_globs
from .weights import Weight, find_weights

Array = np.ndarray[Any, Any]
Labels = np.ndarray[Any, np.dtype[np.int64]]

NO_CONSUMER = "no chosen weight sums over its units"
NOT_NEIGHBORS = "its units do not lie next to each other, or fill no two groups of the pattern"
NOTHING_BETTER = "no order was found that keeps more"


@dataclass(frozen=True)
class PermutedGroup:
    """What became of one group: the magnitude that N:M keeps of the weights it runs along, before and after.

    `weights` are those whose input channels are its units. `reason` says why the order is the old one, None where it is
    new.
    """

    group: str
    units: int
    weights: tuple[str, ...]
    before: float
    after: float
    seconds: float = field(compare=False)
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the figures for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Permuted:
    """The model with its channels in another order, and the magnitude N:M keeps of all chosen weights.

    Magnitudes are sums of absolute values; `total` is that of all chosen weights uncut. `permutations` has the new
    orders by group id: the unit at position k is the old unit `permutation[k]`.
    """

    model: Model
    rows: tuple[PermutedGroup, ...]
    permutations: Mapping[str, tuple[int, ...]] = field(repr=False)
    before: float
    after: float
    total: float
    seconds: float = field(compare=False)

    def to_json(self) -> dict[str, Any]:
        """Give the figures for JSON, without the model and the orders."""
        figures = {"before": self.before, "after": self.after, "total": self.total, "seconds": self.seconds}
        return figures | {"groups": [row.to_json() for row in self.rows]}


def permute_for(
    source: Analysis | Model,
    pattern: Any = "2:4",
    layers: Sequence[str] | None = None,
    *,
    work: int | None = None,
) -> Permuted:
    """Reorder channels so that `pattern`, an N:M, keeps more magnitude of the chosen weights. The function stays.

    `layers` are names or globs of the weights that will be cut (None: all linear, convolution and recurrent ones);
    only they count. `work` bounds the search of each group, see `masks.permutation_search.search_order`. The same input
    gives the same bytes. Raises `OptionError` for a pattern that is no N:M, `UnknownNameError` for unknown layers.
    """
    start = time.perf_counter()
    parsed = parse_pattern(pattern)
    if not isinstance(parsed, NofM):
        raise OptionError(f"channels are put in order for patterns N:M, not for {pattern!r}; give one such as '2:4'")
    analysis = source if isinstance(source, Analysis) else analyze_model(source)
    search = _Search(analysis, parsed, _chosen(analysis.model, layers))
    rows = tuple(search.improve(group, work) for group in analysis.groups)
    orders = {name: tuple(order) for name, order in search.permutations.items()}
    model = permute_units(analysis, orders)
    before, after, total = search.totals()
    return Permuted(model, rows, orders, before, after, total, time.perf_counter() - start)


def _chosen(model: Model, layers: Sequence[str] | None) -> list[Weight]:
    weights = find_weights(model)
    if layers is None:
        return [w for w in weights.found if w.kind in DEFAULT_KINDS]
    names = {w.name for w in weights.found}
    check_globs(weights, [name for name in layers if name not in names])
    return [w for w in weights.found if w.name in layers or w.matches(layers)]


@dataclass
class _Search:
    """Orders found so far, one group after the other."""

    analysis: Analysis
    pattern: NofM
    weights: list[Weight]
    permutations: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.symmetries = Symmetries(self.analysis)
        values = {v.name: v for v in self.analysis.collection.parameters if v.use is None}
        self.axes = {w.tensor: [a.id for a in values[w.tensor].axes] for w in self.weights if w.tensor in values}

    def improve(self, group: Group, work: int | None) -> PermutedGroup:
        """Look for a better order of one group, given those of the groups before it; keep it if it is better."""
        start = time.perf_counter()
        tensors = {m.initializer for m in group.members}
        touched = [w for w in self.weights if w.tensor in tensors]
        consumers = [(w, units) for w in touched if (units := self._units(group, w)) is not None]
        now = self.symmetries.movement(self.permutations)
        before = after = sum(self.kept(w, now) for w in touched)
        orbits = self.symmetries.orbits(group.id)
        reason: str | None = NO_CONSUMER if not consumers else orbits.reason
        if consumers and orbits.classes:
            order = self._search(group, consumers, orbits.classes, work)
            reason = NOT_NEIGHBORS if order is None else NOTHING_BETTER
            if order is not None and (order != np.arange(group.size)).any():
                trial = {**self.permutations, group.id: order.tolist()}
                then = self.symmetries.movement(trial)
                reason = then.reason()
                if reason is None:
                    after = sum(self.kept(w, then) for w in touched)
                    reason = None if after > before else NOTHING_BETTER
                if reason is None:
                    self.permutations = trial
                else:
                    after = before
        names = tuple(w.name for w, _ in consumers)
        return PermutedGroup(group.id, group.size, names, before, after, time.perf_counter() - start, reason)

    def totals(self) -> tuple[float, float, float]:
        """Sum the magnitude kept of all chosen weights in the old order and in the new one, and all of it."""
        old, new = self.symmetries.movement({}), self.symmetries.movement(self.permutations)
        before = sum(self.kept(w, old) for w in self.weights)
        after = sum(self.kept(w, new) for w in self.weights)
        total = sum(float(np.abs(w.values(self.analysis.model)).sum(dtype=np.float64)) for w in self.weights)
        return before, after, total

    def kept(self, weight: Weight, movement: Movement) -> float:
        """Sum what the pattern keeps of a weight after a movement."""
        return kept_magnitude(_rows(self._moved(weight, movement)), self.pattern.kept, self.pattern.group)

    def _moved(self, weight: Weight, movement: Movement) -> Array:
        """Give a weight's values, (output, input, *kernel), after a movement."""
        sources = [movement.source(axis) for axis in self.axes.get(weight.tensor, ())]
        if all(s is None for s in sources):
            return weight.values(self.analysis.model)
        layout = weight.source.layout
        array = layout.back(weight.source.values(self.analysis.model))
        for k, s in enumerate(sources):
            array = array if s is None else np.take(array, s, axis=k)
        moved: Array = layout.view(array)[weight.part]
        return moved

    def _units(self, group: Group, weight: Weight) -> Labels | None:
        """Give the unit of every input channel of a weight, -1 for none; None where they are not its input channels."""
        layout = weight.source.layout
        for member in group.members:
            if member.initializer != weight.tensor:
                continue
            along = [1] * len(layout.stored)
            along[member.axis] = -1
            units = layout.view(np.broadcast_to(member.unit.astype(np.int32).reshape(along), layout.stored))[
                weight.part
            ]
            columns = units[:1].reshape(units.shape[1], -1)[:, :1]
            if (_rows(units) == columns.T).all():
                return np.asarray(columns[:, 0], dtype=np.int64)
        return None

    def _search(
        self,
        group: Group,
        consumers: Sequence[tuple[Weight, Labels]],
        classes: Sequence[Sequence[int]],
        work: int | None,
    ) -> Labels | None:
        """Search an order for all runs of the group's units that begin at the same position inside N:M's groups.

        Where runs begin at different ones, those that carry the most count. Units that share a group with channels of
        others stay. None where there is no run, or nothing to choose.
        """
        size, m = group.size, self.pattern.group
        by_shift: dict[int, list[tuple[Array, bool]]] = {}
        for weight, units in consumers:
            matrix = np.abs(_rows(weight.values(self.analysis.model)))
            for first in _runs(units, size):
                run = matrix[:, first : first + size]
                by_shift.setdefault(-first % m, []).append((run, first + size == matrix.shape[1]))
        if not by_shift:
            return None
        shift = max(sorted(by_shift), key=lambda s: sum(float(run.sum()) for run, _ in by_shift[s]))
        label = np.full(size, -1)
        for number, units_of_class in enumerate(classes):
            label[list(units_of_class)] = number
        tail = (size - shift) % m
        if tail and not all(ends for _, ends in by_shift[shift]):
            label[size - tail :] = -1
        if size - shift <= m or not (label[shift:] >= 0).any():
            return None
        rows = np.concatenate([run[:, shift:] for run, _ in by_shift[shift]])
        found = search_order(rows, self.pattern.kept, m, classes=label[shift:], work=work)
        return np.concatenate([np.arange(shift), shift + found.permutation])


def _rows(weight: Array) -> Array:
    """Bring (output, input, *kernel) to (kernel * output, input): the rows that N:M runs along."""
    return np.moveaxis(weight, 1, -1).reshape(-1, weight.shape[1])


def _runs(units: Labels, size: int) -> list[int]:
    """List where all units of a group begin to lie side by side, in order."""
    starts = np.flatnonzero(units == 0)
    return [s for s in starts.tolist() if s + size <= len(units) and (units[s : s + size] == np.arange(size)).all()]


__all__ = ["Permuted", "PermutedGroup", "permute_for"]
