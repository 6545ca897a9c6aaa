"""Widths that meet a budget: remove the least important units until every metric is within its target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..axes.analysis import Analysis, Group
from ..axes.costs import Cost
from ..errors import TargetError
from .eligible import Limits, aligned_removal

METRICS = ("params", "macs", "bytes")
Counts = dict[str, int]


@dataclass(frozen=True)
class Candidate:
    """A group that may be pruned: its units from the least to the most important, with their scores in that order."""

    group: Group
    order: np.ndarray[Any, np.dtype[np.int64]]
    scores: np.ndarray[Any, np.dtype[np.float64]]
    limits: Limits

    def steps(self) -> Iterator[tuple[int, float]]:
        """List the counts that may go, rising, each with the mean score of the units it adds."""
        before = 0
        for wanted in range(1, self.limits.removable + 1):
            n = aligned_removal(self.group.size, wanted, self.limits)
            if n > before:
                yield n, float(self.scores[before:n].mean())
                before = n


def meet_targets(
    analysis: Analysis, candidates: Sequence[Candidate], target: Mapping[str, float], *, by_score: bool
) -> Counts:
    """Give how many units each group loses so that every metric is at most its fraction of the original.

    `by_score` ranks units across groups; otherwise every group loses the same fraction. What was removed beyond need
    is put back, the most important first, so that the result lies just below the target.
    Raises `TargetError` when even removing everything allowed is not enough.
    """
    budget = {m: f * getattr(analysis.cost, m) for m, f in target.items()}
    steps = _steps(candidates, by_score)
    fits = _fits(analysis, candidates, budget)
    if not fits(_counts(candidates, steps)):
        raise TargetError(_unreachable(analysis, candidates, steps, target))
    n = _smallest(len(steps), lambda k: fits(_counts(candidates, steps[:k])))
    return _put_back(candidates, steps[:n], fits)


Step = tuple[int, int]


def _steps(candidates: Sequence[Candidate], by_score: bool) -> list[Step]:
    """Order all steps (candidate, count); a group's own steps stay in order."""
    rows = []
    for k, c in enumerate(candidates):
        highest = -np.inf
        for n, score in c.steps():
            highest = max(highest, score)
            rows.append((highest if by_score else n / c.group.size, k, n))
    return [(k, n) for _, k, n in sorted(rows)]


def _counts(candidates: Sequence[Candidate], steps: Sequence[Step]) -> Counts:
    counts = dict.fromkeys((c.group.id for c in candidates), 0)
    for k, n in steps:
        counts[candidates[k].group.id] = max(counts[candidates[k].group.id], n)
    return counts


def _fits(
    analysis: Analysis, candidates: Sequence[Candidate], budget: Mapping[str, float]
) -> Callable[[Counts], bool]:
    def fits(counts: Counts) -> bool:
        cost = cost_of(analysis, candidates, counts)
        return all(getattr(cost, m) <= limit for m, limit in budget.items())

    return fits


def cost_of(analysis: Analysis, candidates: Sequence[Candidate], counts: Counts) -> Cost:
    """Compute the cost after removing the first `counts` units of every candidate."""
    alive = analysis.all_alive()
    for c in candidates:
        alive[c.group.roots[c.order[: counts[c.group.id]]]] = False
    return analysis.costs(alive)


def _smallest(n: int, holds: Callable[[int], bool]) -> int:
    """Give the smallest k in [0, n] for which `holds`, which holds from some k on and at n."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _put_back(candidates: Sequence[Candidate], taken: list[Step], fits: Callable[[Counts], bool]) -> Counts:
    """Undo steps, the latest first, wherever the result still fits; a group's steps are undone from its last."""
    remaining = list(taken)
    position = len(remaining) - 1
    blocked: set[int] = set()
    tries = 0
    while position >= 0 and tries < MAX_TRIES:
        undoable = [i for i in range(position, -1, -1) if remaining[i][0] not in blocked]
        if not undoable:
            break

        def without(count: int, rows: list[int] = undoable) -> list[Step]:
            gone = set(rows[:count])
            return [s for i, s in enumerate(remaining) if i not in gone]

        refused = _smallest(len(undoable), lambda c: not fits(_counts(candidates, without(c))) or c == len(undoable))
        count = refused if fits(_counts(candidates, without(refused))) else refused - 1
        tries += 1
        stop = undoable[count] if count < len(undoable) else -1
        kept = without(count)
        if stop >= 0:
            blocked.add(remaining[stop][0])
        remaining = kept
        position = min(stop, len(remaining) - 1) if stop >= 0 else -1
    return _counts(candidates, remaining)


MAX_TRIES = 64


def _unreachable(
    analysis: Analysis, candidates: Sequence[Candidate], steps: Sequence[Step], target: Mapping[str, float]
) -> str:
    from .choose import frozen_summary

    least = cost_of(analysis, candidates, _counts(candidates, steps))
    parts = []
    for metric, fraction in target.items():
        reached = getattr(least, metric) / max(1, getattr(analysis.cost, metric))
        if reached > fraction:
            parts.append(f"cannot keep at most {100 * fraction:.4g} % of the {metric}; {100 * reached:.3g} % is the least possible")
    return (
        f"{analysis.model.label}: {'; '.join(parts)}. {frozen_summary(analysis)} "
        "Try a higher --max-ratio, --allow-inexact, or: onnxprune inspect MODEL --why INITIALIZER"
    )
