"""One sparsity for many weights: shared out by each weight alone, or ranked across all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from ..errors import OptionError, TargetError, unknown_name
from . import numpy_kernels
from .pattern import DEFAULT_RULE, FIRST_TO_GO, Array, Pattern, UnitPattern, kernels_for
from .patterns import parse_pattern
from .rule import Rule

T = TypeVar("T")
Parts: TypeAlias = Sequence[np.ndarray[Any, Any]]

_SLACK = 1e-9


def keep_masks(
    scores: Mapping[str, Array],
    patterns: str | Pattern | Mapping[str, str | Pattern] = "unstructured",
    sparsity: float | Mapping[str, float] | None = None,
    *,
    scope: Literal["local", "global"] = "local",
    max_ratio: float | Mapping[str, float] = 1.0,
    min_ratio: float | Mapping[str, float] = 0.0,
    locked: Mapping[str, Array] | None = None,
    rule: Rule = DEFAULT_RULE,
) -> dict[str, Array]:
    """Make a keep mask (bool, True survives) for each of several weights from their scores, higher = keep.

    Patterns, sparsities and ratios are one value for all, or by name. Scope "local": each weight gets its own
    sparsity, brought within its ratios. Scope "global": units are ranked across all weights and the total is what
    the sparsities ask for together, exactly; no weight loses less than `min_ratio` or more than `max_ratio` of its
    units, and what one may not give, the others do. Units of one pattern are counted; of several, their weights.
    Of equal scores, the unit of the earlier weight and the lower index survives. `locked` marks what must be zero.

    Raises `OptionError` for a minimum above the maximum or the target and for names that are no weight's, and
    `TargetError`, with the most that can be had, where the maxima leave too little.
    """
    for setting in (patterns, sparsity, max_ratio, min_ratio, locked):
        _check_names(setting, scores)
    if scope not in ("local", "global"):
        raise unknown_name("scope", str(scope), ("local", "global"))
    rows = [
        _Weight.of(
            name,
            value,
            parse_pattern(_one(patterns, name, "unstructured")),
            _one(sparsity, name, None),
            (_one(min_ratio, name, 0.0), _one(max_ratio, name, 1.0)),
            None if locked is None else locked.get(name),
        )
        for name, value in scores.items()
    ]
    if scope == "local":
        return {row.name: _alone(row, rule) for row in rows}
    return _together(rows, rule)


@dataclass(frozen=True)
class _Weight:
    name: str
    scores: Array
    pattern: Pattern
    sparsity: float | None
    low: float
    high: float
    locked: Array | None

    @classmethod
    def of(
        cls,
        name: str,
        scores: Array,
        pattern: Pattern,
        sparsity: float | None,
        bounds: tuple[float, float],
        locked: Array | None,
    ) -> _Weight:
        low, high = bounds
        if not 0 <= low <= high <= 1:
            raise OptionError(
                f"weight {name!r}: min_ratio {low:g} and max_ratio {high:g} must satisfy 0 <= minimum <= maximum <= 1"
            )
        if locked is not None and tuple(locked.shape) != tuple(scores.shape):
            raise OptionError(
                f"weight {name!r}: locked has shape {tuple(locked.shape)}, its scores {tuple(scores.shape)}"
            )
        return cls(name, scores, pattern, sparsity, low, high, locked)


def _one(setting: Any, name: str, default: T) -> Any | T:
    if isinstance(setting, Mapping):
        return setting.get(name, default)
    return default if setting is None else setting


def _check_names(setting: Any, scores: Mapping[str, Array]) -> None:
    if isinstance(setting, Mapping):
        for name in setting:
            if name not in scores:
                raise unknown_name("weight", str(name), scores)


def _alone(row: _Weight, rule: Rule) -> Array:
    """Mask one weight at its own sparsity, brought within its ratios."""
    sparsity = row.sparsity
    if row.low > 0 or row.high < 1:
        wanted = row.sparsity if row.sparsity is not None else row.pattern.own_sparsity
        sparsity = min(max(0.5 if wanted is None else wanted, row.low), row.high)
    return row.pattern.keep(row.scores, sparsity, row.locked, rule=rule)


@dataclass(frozen=True)
class _Ranked:
    """The units of one weight: their scores, and the fraction and number of them that must and may go."""

    row: _Weight
    pattern: UnitPattern
    scores: Array
    units: np.ndarray[Any, Any]
    level: float
    low: float
    high: float
    least: int
    most: int


def _together(rows: list[_Weight], rule: Rule) -> dict[str, Array]:
    """Rank the units of all weights at once.

    What must go of a weight (its `least` lowest units) and what may not (all but its `most` lowest) is settled first;
    the lowest of the remaining units of all weights make up the total.
    """
    if not rows:
        return {}
    ranked = [_rank(row, rule) for row in rows]
    same = len({r.pattern for r in ranked}) == 1
    costs = [
        np.ones(len(r.units), dtype=np.uint8) if same else r.pattern.zeros_of(tuple(r.scores.shape)) for r in ranked
    ]
    forced = [numpy_kernels.lowest(r.units, r.least) for r in ranked]
    allowed = [numpy_kernels.lowest(r.units, r.most) for r in ranked]
    certain = _spent(costs, forced)
    total = _total(ranked, costs, certain, _spent(costs, allowed), rule)
    free = [may & ~must for may, must in zip(allowed, forced, strict=True)]
    joined = np.concatenate([r.units[f] for r, f in zip(ranked, free, strict=True)])
    cost = np.concatenate([c[f] for c, f in zip(costs, free, strict=True)])
    left = total - certain
    taken = numpy_kernels.lowest(joined, left) if same else _fill(joined, cost, left)
    result: dict[str, Array] = {}
    start = 0
    for r, must, f in zip(ranked, forced, free, strict=True):
        chosen = must.copy()
        n = int(np.count_nonzero(f))
        chosen[f] = taken[start : start + n]
        start += n
        result[r.row.name] = _apply(r, chosen)
    return result


def _rank(row: _Weight, rule: Rule) -> _Ranked:
    if not isinstance(row.pattern, UnitPattern):
        raise OptionError(
            f"weight {row.name!r}: {row.pattern} has no units that could be ranked across weights; use scope 'local'"
        )
    scores = row.scores
    if row.locked is not None:
        scores = kernels_for(scores).first_where(row.locked, FIRST_TO_GO, scores)
    flat = row.pattern.unit_scores(scores, rule)
    units = flat if isinstance(flat, np.ndarray) else flat.cpu().numpy()
    n = len(units)
    level = min(max(row.pattern.level(row.sparsity), 0.0), 1.0)
    # Ratios are fractions of zeros; a pattern with a sparsity of its own reaches it when all its units go.
    own = row.pattern.own_sparsity or 1.0
    low, high = min(1.0, row.low / own), min(1.0, row.high / own)
    done = int(np.count_nonzero(units == FIRST_TO_GO))
    spare = rule.min_keep if level < 1 and row.pattern.own_sparsity is None else 0
    least = max(math.ceil(low * n - _SLACK), done)
    most = max(min(math.floor(high * n + _SLACK), n - spare), least)
    return _Ranked(row, row.pattern, scores, units, level, low, high, least, most)


def _spent(costs: Parts, chosen: Parts) -> int:
    return sum(int(cost[marked].sum()) for cost, marked in zip(costs, chosen, strict=True))


def _total(ranked: list[_Ranked], costs: Parts, least: int, most: int, rule: Rule) -> int:
    """Give what goes in all, in units or in weights; raises where the ratios leave too much or too little.

    `least` and `most` are the ratios in whole units; what their rounding takes from the total is not made good.
    """
    sizes = [int(cost.sum()) for cost in costs]
    everything = sum(sizes)
    wanted = sum(r.level * size for r, size in zip(ranked, sizes, strict=True))
    low = sum(r.low * size for r, size in zip(ranked, sizes, strict=True))
    high = sum(r.high * size for r, size in zip(ranked, sizes, strict=True))
    slack = _SLACK * (1 + everything)
    if low > wanted + slack:
        raise OptionError(
            f"the minima alone take {low / everything:.4g} of what can go, more than the target of "
            f"{wanted / everything:.4g}; lower min_ratio or raise the sparsity"
        )
    if high < wanted - slack:
        raise TargetError(
            f"the maxima leave at most {high / everything:.4g} of what can go, less than the target of "
            f"{wanted / everything:.4g}; raise max_ratio or lower the sparsity"
        )
    return min(max(rule.rounded(wanted), least), most)


def _fill(units: np.ndarray[Any, Any], cost: np.ndarray[Any, Any], amount: int) -> np.ndarray[Any, Any]:
    """Take the lowest units of different sizes while the amount lasts, smaller ones where a larger does not fit."""
    # A stable sort of the reversed scores puts the higher index of equal ones first.
    order = len(units) - 1 - np.argsort(units[::-1], kind="stable")
    taken = np.zeros(len(units), dtype=bool)
    spent = np.cumsum(cost[order])
    n = int(np.searchsorted(spent, amount, side="right"))
    taken[order[:n]] = True
    left = amount - (int(spent[n - 1]) if n else 0)
    rest = order[n:]
    while left > 0 and len(rest):
        rest = rest[cost[rest] <= left]
        rest = rest[cost[rest] > 0]
        if len(rest):
            spent = np.cumsum(cost[rest])
            n = int(np.searchsorted(spent, left, side="right"))
            taken[rest[:n]] = True
            left -= int(spent[n - 1])
            rest = rest[n:]
    return taken


def _apply(r: _Ranked, chosen: np.ndarray[Any, Any]) -> Array:
    """Turn the chosen units of a weight into its keep mask."""
    picked: Any = chosen
    if not isinstance(r.scores, np.ndarray):
        import torch

        picked = torch.from_numpy(chosen).to(r.scores.device)
    cut = r.pattern.cut(r.scores, picked)
    if r.row.locked is not None:
        cut |= r.row.locked
    return ~cut
