"""Widths that meet a budget: remove the least important units until every metric is within its target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..axes.analysis import Analysis, Keep
from ..axes.costs import Cost
from ..axes.groups import Group
from ..errors import TargetError
from .eligible import Limits, aligned_removal

METRICS = ("params", "macs", "bytes")
TARGETS = (*METRICS, "latency")
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
    analysis: Analysis,
    candidates: Sequence[Candidate],
    target: Mapping[str, float],
    *,
    by_score: bool,
    hint: str = "",
) -> Counts:
    """Give how many units each group loses so that every metric is at most its fraction of the original.

    `by_score` ranks units across groups; otherwise every group loses the same fraction. What was removed beyond need
    is put back, the most important first, so that the result lies just below the target.
    Raises `TargetError` when even removing everything allowed is not enough; `hint` says there what stands in the way.
    """
    steps = _steps(candidates, by_score)
    used = _Budget(analysis, candidates, {m: f * getattr(analysis.cost, m) for m, f in target.items()})
    if used(_counts(candidates, steps)) > 1:
        raise TargetError(_unreachable(analysis, candidates, target, hint))
    n = _smallest(len(steps), lambda k: used(_counts(candidates, steps[:k])) <= 1)
    counts = _counts(candidates, _put_back(candidates, steps[:n], used))
    return _tighten(candidates, counts, used)


class _Budget:
    """The largest fraction of its budget that any metric uses up, for a choice of counts."""

    def __init__(self, analysis: Analysis, candidates: Sequence[Candidate], limits: Mapping[str, float]) -> None:
        self._analysis = analysis
        self._candidates = candidates
        self._limits = limits

    def __call__(self, counts: Counts) -> float:
        cost = cost_of(self._analysis, self._candidates, counts)
        return max(float(getattr(cost, m)) / limit for m, limit in self._limits.items())


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


def cost_of(analysis: Analysis, candidates: Sequence[Candidate], counts: Counts) -> Cost:
    """Compute the cost after removing the first `counts` units of every candidate."""
    return analysis.costs(alive_after(analysis, candidates, counts))


def least_cost(analysis: Analysis, candidates: Sequence[Candidate]) -> Cost:
    """Compute the cost after removing all that may go."""
    return cost_of(analysis, candidates, {c.group.id: max((n for n, _ in c.steps()), default=0) for c in candidates})


def alive_after(analysis: Analysis, candidates: Sequence[Candidate], counts: Mapping[str, int]) -> Keep:
    """Give what stays after removing the first `counts` units of every candidate."""
    alive = analysis.all_alive()
    for c in candidates:
        alive[c.group.roots[c.order[: counts[c.group.id]]]] = False
    return alive


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


def _put_back(candidates: Sequence[Candidate], taken: list[Step], used: _Budget) -> list[Step]:
    """Undo steps, the latest first, while the result fits; a group's steps are undone from its last.

    A step that does not fit blocks its group. It ends when what is used is `FULL`, or every group is blocked.
    """
    remaining = list(taken)
    blocked: set[int] = set()
    while used(_counts(candidates, remaining)) < FULL:
        undoable = [i for i in range(len(remaining) - 1, -1, -1) if remaining[i][0] not in blocked]

        def without(count: int, rows: list[int] = undoable, steps: list[Step] = remaining) -> list[Step]:
            gone = set(rows[:count])
            return [s for i, s in enumerate(steps) if i not in gone]

        def breaks(count: int, keep: Callable[[int], list[Step]] = without) -> bool:
            return used(_counts(candidates, keep(count))) > 1

        end = len(undoable)
        count = _smallest(end, partial(_ends_at, end, breaks))
        if count == end:
            return without(count)
        blocked.add(remaining[undoable[count]][0])
        remaining = without(count)
    return remaining


def _ends_at(end: int, breaks: Callable[[int], bool], count: int) -> bool:
    """Say whether undoing one more than `count` steps is impossible or too much."""
    return count == end or breaks(count + 1)


def _tighten(candidates: Sequence[Candidate], counts: Counts, used: _Budget) -> Counts:
    """Trade steps between two groups while that comes closer to the budget from below; only coarse steps need it."""
    ladders = {c.group.id: [0, *(n for n, _ in c.steps())] for c in candidates}
    best = used(counts)
    for _ in range(MAX_TRADES):
        if best >= CLOSE_ENOUGH or len(candidates) > MAX_TRADERS:
            break
        better = [(u, k, t) for k, t in enumerate(_trades(ladders, counts, used)) if best < (u := used(t)) <= 1]
        if not better:
            break
        best, _, counts = max(better, key=lambda row: (row[0], -row[1]))
    return counts


def _trades(ladders: Mapping[str, list[int]], counts: Counts, used: _Budget) -> Iterator[Counts]:
    """List choices where one group moves a few steps and another one makes up for it as well as its steps allow."""
    for a, ladder in ladders.items():
        at = ladder.index(counts[a])
        for n in ladder[max(0, at - REACH) : at + REACH + 1]:
            for b, other in ladders.items():
                trial = {**counts, a: n}
                if b != a:
                    k = _smallest(len(other) - 1, partial(_is_enough, used, trial, b, other))
                    yield {**trial, b: other[k]}


def _is_enough(used: _Budget, trial: Counts, group: str, ladder: list[int], k: int) -> bool:
    return used({**trial, group: ladder[k]}) <= 1


REACH = 4
FULL = 0.998
CLOSE_ENOUGH = 0.985
MAX_TRADES = 8
MAX_TRADERS = 12


def _unreachable(analysis: Analysis, candidates: Sequence[Candidate], target: Mapping[str, float], hint: str) -> str:
    least = least_cost(analysis, candidates)
    parts = []
    for metric, fraction in target.items():
        reached = getattr(least, metric) / max(1, getattr(analysis.cost, metric))
        if reached > fraction:
            parts.append(
                f"cannot keep at most {100 * fraction:.4g} % of the {metric}; "
                f"{100 * reached:.3g} % is the least possible"
            )
    return f"{analysis.model.label}: {'; '.join(parts) or 'the targets cannot be met together'}. {hint}"
