"""Choose the units that go: a fixed ratio per group, a ratio over all units, or the widths that meet targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..axes.analysis import Analysis
from ..axes.cuts import make_plan
from ..axes.groups import Group
from ..criteria.registry import Rows
from ..criteria.units import score_groups
from ..errors import NotMetError, OptionError, unknown_name
from ..planfile import Plan, PlanGroup
from .eligible import Limits, aligned_removal, eligible, limits
from .target import METRICS, TARGETS, Candidate, alive_after, meet_targets

DEFAULT_CRITERION = "l2"
Scorer = Callable[[Sequence[Group]], Mapping[str, tuple[Rows, dict[str, Any]]]]


@dataclass(frozen=True)
class Options:
    """What to remove; see the command line's `prune` for the meaning of each.

    Exactly one of `ratio` (a fraction in [0, 1)), `target` (metric to fraction that may remain) and `max_drop` (how far
    the caller's metric may fall while the size `minimize` is made as small as can be) is given. `scorer` scores units
    by more than their weights: of some groups it gives the scores (size,) and what was used, by group id.
    """

    ratio: float | None = None
    target: Mapping[str, float] = field(default_factory=dict)
    max_drop: float | None = None
    minimize: str = "macs"
    criterion: str = DEFAULT_CRITERION
    scope: str | None = None
    max_ratio: float = 0.9
    round_to: int | str | None = None
    kinds: Sequence[str] | None = None
    allow_inexact: bool = False
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    seed: int = 0
    scorer: Scorer | None = field(default=None, repr=False, compare=False)

    def check(self) -> None:
        """Raise `OptionError` for a value out of range or a combination that says nothing."""
        if (self.ratio is not None) + bool(self.target) + (self.max_drop is not None) != 1:
            raise OptionError(
                "give one of a ratio, a target and a largest drop (--ratio R; --target params=F, macs=F, bytes=F or "
                "latency=F; --max-drop X)"
            )
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise OptionError(
                f"ratio {self.ratio:g} is out of range; it is the fraction to remove, at least 0 and below 1"
            )
        if not 0 <= self.max_ratio <= 1:
            raise OptionError(f"max_ratio {self.max_ratio:g} is out of range; it is a fraction from 0 to 1")
        for metric, fraction in self.target.items():
            if metric not in TARGETS:
                raise unknown_name("target metric", metric, TARGETS)
            if not 0 < fraction <= 1:
                what = "it is the fraction that may remain, above 0 and at most 1"
                raise OptionError(f"target {metric}={fraction:g} is out of range; {what}")
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise OptionError(f"max_drop {self.max_drop:g} is out of range; it is what the metric may lose, 0 or more")
        if self.minimize not in METRICS:
            raise unknown_name("size to minimize", self.minimize, METRICS)
        if self.scope not in (None, "local", "global"):
            raise unknown_name("scope", str(self.scope), ("local", "global"))

    @property
    def alignment(self) -> int | str | None:
        """Give `round_to`; where time counts, aligned widths are the default."""
        return "auto" if self.round_to is None and "latency" in self.target else self.round_to


@dataclass(frozen=True)
class Ranking:
    """The groups that may be pruned, with their units in order; plans of any size come out of it.

    `reasons` says for every group why it is left alone, None where it is not; `scores` what ranked its units.
    """

    analysis: Analysis
    candidates: tuple[Candidate, ...]
    reasons: Mapping[str, str | None]
    scores: Mapping[str, Mapping[str, Any]]


def choose(analysis: Analysis, options: Options, weights: set[str] | None = None) -> Plan:
    """Decide which units go. `weights` limits the choice to groups that one of these initializers produces.

    Raises `OptionError` for bad options, `NotMetError` when nothing can be pruned, `TargetError` for a target out of
    reach.
    """
    options.check()
    ranking = rank(analysis, options, weights)
    return settle(ranking, options.target, ratio=options.ratio, scope=options.scope)


def rank(analysis: Analysis, options: Options, weights: set[str] | None = None) -> Ranking:
    """Order the units of every group that may be pruned; raises as `choose` does, for a target only in `settle`."""
    reasons = eligible(
        analysis,
        kinds=options.kinds,
        allow_inexact=options.allow_inexact,
        include=options.include,
        exclude=options.exclude,
        weights=weights,
    )
    open_groups = [g for g in analysis.groups if reasons[g.id] is None]
    if not open_groups and options.ratio != 0:
        raise NotMetError(nothing_prunable(analysis, reasons))
    bounds = {g.id: limits(g, options.max_ratio, options.alignment) for g in open_groups}
    scored = _scored(analysis, open_groups, options)
    candidates = tuple(_candidate(g, scored[g.id][0], bounds[g.id]) for g in open_groups)
    return Ranking(analysis, candidates, reasons, {name: used for name, (_, used) in scored.items()})


def _scored(analysis: Analysis, groups: Sequence[Group], options: Options) -> Mapping[str, tuple[Rows, dict[str, Any]]]:
    """Score the units of every group, higher is worth keeping."""
    if options.scorer is not None:
        return options.scorer(groups)
    return score_groups(analysis, groups, options.criterion, options.seed)


def settle(
    ranking: Ranking, target: Mapping[str, float], *, ratio: float | None = None, scope: str | None = None
) -> Plan:
    """Take the least important units, as many as the target or else the ratio says.

    Raises `TargetError` for a target out of reach.
    """
    analysis, candidates, reasons = ranking.analysis, ranking.candidates, ranking.reasons
    scope = scope or ("global" if target else "local")
    if target:
        hint = _what_is_frozen(analysis, reasons)
        counts = meet_targets(analysis, candidates, target, by_score=scope == "global", hint=hint)
    elif scope == "global":
        counts = _global_counts(candidates, ratio or 0.0)
    else:
        counts = {c.group.id: local_count(c, ratio or 0.0) for c in candidates}
    counts = _leave_something(analysis, candidates, counts)
    order = {c.group.id: c.order for c in candidates}
    rows = []
    for group in analysis.groups:
        n = counts.get(group.id, 0)
        removed = tuple(sorted(order[group.id][:n].tolist())) if n else ()
        used = ranking.scores.get(group.id, {})
        locked, why = reasons[group.id], group.why_inexact
        rows.append(PlanGroup(group.id, group.kind, group.size, removed, group.exact, used, locked, why, group.blocks))
    plan = make_plan(analysis, rows, dict(analysis.collection.shapes.input_shapes))
    return replace(plan, scores={c.group.id: _by_unit(c) for c in candidates})


def _by_unit(candidate: Candidate) -> Rows:
    scores = np.empty_like(candidate.scores)
    scores[candidate.order] = candidate.scores
    return scores


def _candidate(group: Group, scores: np.ndarray[Any, np.dtype[np.float64]], bound: Limits) -> Candidate:
    """Order a group's units, the least important first; among equals the higher index goes first.

    The blocks of a group take turns, each with its own least important unit.
    """
    order = np.lexsort((-np.arange(group.size), scores))
    if group.blocks > 1:
        grouped = order[np.argsort(group.block[order], kind="stable")]
        order = grouped.reshape(group.blocks, group.width).T.ravel()
    return Candidate(group, order, scores[order], bound)


def local_count(candidate: Candidate, ratio: float) -> int:
    """Count what a ratio removes from one group: never more than asked for."""
    wanted = math.floor(ratio * candidate.group.size + 1e-9)
    return aligned_removal(candidate.group.size, wanted, candidate.limits)


def _global_counts(candidates: Sequence[Candidate], ratio: float) -> dict[str, int]:
    """Remove the fraction `ratio` of all units, the least important first wherever they are."""
    total = math.floor(ratio * sum(c.group.size for c in candidates) + 1e-9)
    steps = sorted((score, k, n) for k, c in enumerate(candidates) for n, score in c.steps())
    counts = dict.fromkeys((c.group.id for c in candidates), 0)
    gone = 0
    for _, k, n in steps:
        c = candidates[k]
        more = n - counts[c.group.id]
        if more > 0 and gone + more <= total:
            counts[c.group.id] = n
            gone += more
    return counts


def _leave_something(analysis: Analysis, candidates: Sequence[Candidate], counts: Mapping[str, int]) -> dict[str, int]:
    """Give units back where all of an axis would go, though no single group loses everything.

    Where an axis joins several groups, they may empty it together: the most important step on it is undone.
    """
    counts = dict(counts)
    by_id = {c.group.id: c for c in candidates}
    while (axis := analysis.emptied(alive_after(analysis, candidates, counts))) is not None:
        last = []
        for k, group in enumerate(analysis.groups_on(axis)):
            taken = (
                [step for step in by_id[group.id].steps() if step[0] <= counts[group.id]] if group.id in by_id else []
            )
            if taken:
                last.append((taken[-1][1], -k, group.id, taken[-2][0] if len(taken) > 1 else 0))
        _, _, name, fewer = max(last)
        counts[name] = fewer
    return counts


def nothing_prunable(analysis: Analysis, reasons: Mapping[str, str | None]) -> str:
    """Say why nothing can be pruned."""
    label = analysis.model.label
    if reasons:
        why = "; ".join(sorted({str(r) for r in reasons.values() if r})[:3])
        return f"{label}: no group can be pruned. {len(reasons)} groups are left alone: {why}"
    return f"{label}: nothing can be pruned. {_what_is_frozen(analysis, reasons)}"


def _what_is_frozen(analysis: Analysis, reasons: Mapping[str, str | None]) -> str:
    """Say what stands in the way: frozen weights, groups left alone, and what to try."""
    left = [g for g in analysis.groups if reasons[g.id] is not None]
    inexact = [g.id for g in left if not g.exact]
    parts = [frozen_summary(analysis)]
    if inexact:
        parts.append(f"{len(inexact)} inexact groups ({inexact[0]!r}, ...) are left alone; --allow-inexact takes them.")
    if len(left) > len(inexact):
        parts.append(f"{len(left) - len(inexact)} groups were not asked for.")
    return " ".join([*parts, "Try a higher --max-ratio, or: onnxprune inspect MODEL --why INITIALIZER"])


def frozen_summary(analysis: Analysis) -> str:
    """Say what share of the parameters lies in weights without any prunable axis, by reason."""
    on_groups = {m.initializer for g in analysis.groups for m in g.members}
    shares: dict[str, int] = {}
    total = max(1, analysis.cost.params)
    seen: set[str] = set()
    for row in analysis.locked:
        if row.initializer in on_groups or row.initializer in seen:
            continue
        seen.add(row.initializer)
        reason = row.reason.split(" (")[0]
        shares[reason] = shares.get(reason, 0) + math.prod(analysis.model.tensors[row.initializer].dims)
    parts = [f"{100 * n / total:.0f} % {why}" for why, n in sorted(shares.items(), key=lambda kv: -kv[1])[:3]]
    return f"Frozen: {', '.join(parts)}." if parts else "No weight is frozen along all its axes."
