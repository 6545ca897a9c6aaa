"""Which elements of the chosen weights survive, and what becomes of those that do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from ..calibration import Statistics, Wanted, gather
from ..calibration.probe import Probe
from ..data import Feed, load_data
from ..errors import OptionError
from ..graph.model import Model
from ..masks import Blocks, Pattern, PerRow, Rule, UnitPattern, keep_masks
from ..masks.sparsegpt import sparsegpt
from ..masks.wanda import wanda_scores
from .contents import contents
from .judged import Moments, fit_judged, in_parts
from .settings import WITH_DATA, Settings
from .weights import Source, Weight

Array = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Progress = Callable[[str, int, int], None]

NEEDED = frozenset({"gram", "cross"})
NO_DATA = "nothing is multiplied with it"


@dataclass
class Decision:
    """Masks by weight name, True survives; new values of what survives, where they change; a note per weight.

    `criteria` says what each weight was really ranked by.
    """

    keep: dict[str, Mask] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    criteria: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What to decide: weights in the order the model computes, with their settings.

    `fractions` are the shares of each layer's sparsity to go to, step by step, the last one 1. `locked` holds masks
    made elsewhere, True survives, that are kept to.
    """

    model: Model
    weights: Sequence[Weight]
    settings: Mapping[str, Settings]
    scope: str = "local"
    fractions: Sequence[float] = (1.0,)
    locked: Mapping[str, Mask] = field(default_factory=dict)
    feeds: Iterable[Feed] | None = None
    progress: Progress | None = None


def decide(task: Task) -> Decision:
    """Decide every weight. Each step keeps to the zeros of the one before.

    Raises `OptionError` for a pattern or settings that do not fit, `TargetError` when bounds leave too little.
    """
    _check(task)
    decision = Decision(keep=dict(task.locked))
    ranked = [w for w in task.weights if task.settings[w.name].criterion != "sparsegpt"]
    squares = _squares(task, [w for w in ranked if task.settings[w.name].criterion == "wanda"])
    for k, fraction in enumerate(task.fractions, 1):
        _rank(task, ranked, squares, fraction, decision)
        _repair(task, fraction, decision, is_last=k == len(task.fractions))
    return decision


def _check(task: Task) -> None:
    chosen = [task.settings[w.name] for w in task.weights]
    asked = sorted({s.criterion for s in chosen if isinstance(s.criterion, str)} & WITH_DATA)
    if asked and task.feeds is None:
        raise OptionError(f"criterion {asked[0]} weighs what flows into a layer and needs samples; give data")
    if task.feeds is None and any(s.recover == "lstsq" for s in chosen):
        raise OptionError("recover lstsq fits what is left to samples; give data")
    if task.scope == "global":
        if len({(s.criterion, s.norm) for s in chosen}) > 1:
            raise OptionError("scope global compares scores between layers, so all need one criterion and one norm")
        if "sparsegpt" in asked:
            raise OptionError("sparsegpt decides layer by layer and cannot rank across them; use scope local")


# --- ranking ---


def _rank(
    task: Task, weights: Sequence[Weight], squares: Mapping[str, Array | str], fraction: float, decision: Decision
) -> None:
    """Mask the weights that are ranked by scores: one at a time, or all together where the scope is global."""
    rows = (_Ranked.of(task, w, squares.get(w.name), fraction, decision) for w in weights)
    if task.scope == "global":
        listed = list(rows)
        if listed:
            decision.keep.update(_masks(listed, "global"))
        return
    for done, row in enumerate(rows, 1):
        try:
            decision.keep.update(_masks([row], "local"))
        except OptionError as error:
            shape = "x".join(map(str, row.weight.shape))
            raise OptionError(f"{row.weight.name!r} ({shape}): {error}") from error
        if task.progress is not None:
            task.progress("masking", done, len(weights))


@dataclass(frozen=True)
class _Ranked:
    weight: Weight
    settings: Settings
    scores: Array
    pattern: Pattern
    sparsity: float
    locked: Mask | None

    @classmethod
    def of(cls, task: Task, weight: Weight, square: Array | str | None, fraction: float, decision: Decision) -> _Ranked:
        """Score one weight from its dense values."""
        settings = task.settings[weight.name]
        values = weight.values(task.model)
        criterion = str(settings.criterion)
        pattern = settings.pattern
        if isinstance(square, str):
            criterion = "magnitude"
            decision.notes[weight.name] = f"ranked by magnitude: {square}"
        if criterion == "wanda":
            assert isinstance(square, np.ndarray)
            scores: Array = wanda_scores(values, np.sqrt(square))
            if task.scope == "local":
                pattern = row_by_row(pattern)
        else:
            scores = np.asarray(settings.norm(values)) if callable(settings.norm) else np.abs(values)
            criterion = "norm" if callable(settings.norm) else str(settings.norm)
        if not np.isfinite(scores).all():
            # Refused before, unless it is allowed: what is not finite counts as the largest.
            scores = np.where(np.isfinite(scores), scores, np.inf)
        decision.criteria[weight.name] = criterion
        locked = locked_zeros(settings, values, decision.keep.get(weight.name))
        return cls(weight, settings, scores, pattern, float(settings.sparsity or 0) * fraction, locked)


def row_by_row(pattern: Pattern) -> Pattern:
    """Have zeros that may lie anywhere spread evenly over the outputs.

    Errors are added up on the outputs' own scales: where rows are compared, small ones go as a whole. Within a model
    what follows makes up for that; of the model's outputs these are, say, the rare tokens.
    """
    return PerRow() if pattern == Blocks() else pattern


def locked_zeros(settings: Settings, values: Array, before: Mask | None) -> Mask | None:
    """Mark what must be zero: what an earlier mask zeroed and, with `keep_zeros`, zeros that serve the pattern."""
    locked = None if before is None else ~before
    if settings.keep_zeros:
        zeros: Mask = settings.pattern.lock(values == 0)
        locked = zeros if locked is None else locked | zeros
    return locked


def _masks(rows: Sequence[_Ranked], scope: Any) -> dict[str, Mask]:
    by_name = {row.weight.name: row for row in rows}
    return keep_masks(
        {name: row.scores for name, row in by_name.items()},
        {name: row.pattern for name, row in by_name.items()},
        {name: row.sparsity for name, row in by_name.items()},
        scope=scope,
        max_ratio={name: row.settings.max_ratio for name, row in by_name.items()},
        min_ratio={name: min(row.settings.min_ratio, row.sparsity) for name, row in by_name.items()},
        locked={name: row.locked for name, row in by_name.items() if row.locked is not None},
        rule=Rule(power=2 if rows[0].settings.norm == "l2" else 1),
    )


# --- statistics ---


def _squares(task: Task, weights: Sequence[Weight]) -> dict[str, Array | str]:
    """Gather the mean squares of what every weight is multiplied with, or the reason why there are none."""
    if not weights:
        return {}
    assert task.feeds is not None
    asked = {w.name: Wanted(w.reader[0], w.data, frozenset({"square"})) for w in weights if w.data is not None}
    report = task.progress
    steps = (lambda done, total: report("calibrating", done, total)) if report is not None else None
    found = gather(task.model, list(asked.values()), task.feeds, progress=steps)
    return {w.name: _own(found[asked[w.name]], "square", w) if w.name in asked else NO_DATA for w in weights}


def _own(statistics: Statistics, need: str, weight: Weight) -> Array | str:
    """Give the statistics of one weight, (groups, ...): its own direction or expert, all groups of a convolution."""
    if statistics.missing:
        return statistics.missing
    found: Array = statistics.get(need)
    if weight.n_parts > 1 and len(found) == weight.n_parts:
        found = found[weight.part : weight.part + 1]
    elif weight.n_parts > 1 or len(found) != weight.groups:
        # Weights put together in the graph: what is known holds for all of them.
        found = found.mean(axis=0, keepdims=True)
    features = int(np.prod(weight.shape[1:]))
    if found.shape[-1] != features:
        return f"samples have {found.shape[-1]} features where the weight has {features}"
    return found


# --- repairing ---


def _repair(task: Task, fraction: float, decision: Decision, *, is_last: bool) -> None:
    """Change what is left, layer by layer: what flows into one has gone through those that were changed before it.

    SparseGPT makes its masks here as well; least squares come last, on masks that do not change any more.
    """

    def is_due(settings: Settings) -> bool:
        return settings.criterion == "sparsegpt" or (is_last and settings.recover == "lstsq")

    weights = [w for w in task.weights if is_due(task.settings[w.name])]
    if not weights:
        return
    assert task.feeds is not None
    probe = Probe(task.model)
    waiting = {w.name for w in weights}
    feeds = load_data(task.feeds, task.model)
    fits = is_last and any(task.settings[w.name].recover == "lstsq" for w in weights)
    parts = in_parts(feeds) if fits else [feeds]
    changed = _contents(task, decision, waiting)
    for together in _same_data(task.model, weights):
        # What several weights are multiplied with is gathered once.
        wanted = {w.name: Wanted(w.reader[0], w.data, NEEDED) for w in together if w.data is not None}
        found = [gather(probe, list(wanted.values()), part, weights=changed) for part in parts]
        for weight in together:
            moments: Moments | str = NO_DATA
            if weight.name in wanted:
                moments = _moments([part[wanted[weight.name]] for part in found], weight)
            _repair_one(task, weight, moments, fraction, decision, is_last=is_last)
            waiting.discard(weight.name)
        changed.update(_contents(task, decision, waiting, {w.tensor for w in together}))
        if task.progress is not None:
            task.progress("repairing", len(weights) - len(waiting), len(weights))


def _moments(parts: Sequence[Statistics], weight: Weight) -> Moments | str:
    """Take the moments of one weight from each part of the feeds; or say why no part has any."""
    found: list[Moments] = []
    why = ""
    for statistics in parts:
        gram, cross = (_own(statistics, need, weight) for need in ("gram", "cross"))
        if isinstance(gram, str) or isinstance(cross, str):
            # The feeds of one part may all take another branch of an If.
            why = str(gram)
        else:
            found.append(Moments(gram, cross, statistics.n_rows))
    if not found:
        return why
    return replace(found[0], judge=found[1] if len(found) > 1 else None)


def _repair_one(
    task: Task, weight: Weight, moments: Moments | str, fraction: float, decision: Decision, *, is_last: bool
) -> None:
    settings, name = task.settings[weight.name], weight.name
    dense = weight.values(task.model)
    if not np.isfinite(dense).all():
        moments = "it holds values that are not finite"
    if isinstance(moments, str):
        why = moments
        if settings.criterion == "sparsegpt":
            _rank(task, [weight], {name: why}, fraction, decision)
        decision.notes[name] = (
            f"{decision.notes[name]}; not repaired" if name in decision.notes else f"not repaired: {why}"
        )
        return
    new = decision.values.get(name, dense)
    if settings.criterion == "sparsegpt":
        locked = locked_zeros(settings, dense, decision.keep.get(name))
        sparsity = min(max(float(settings.sparsity or 0) * fraction, settings.min_ratio), settings.max_ratio)
        try:
            pattern = row_by_row(settings.pattern) if weight.makes_output else settings.pattern
            decision.keep[name], new = sparsegpt(new, moments.whole.gram, pattern, sparsity, locked=locked)
        except OptionError as error:
            shape = "x".join(map(str, weight.shape))
            raise OptionError(f"{name!r} ({shape}): {error}") from error
        decision.criteria[name] = "sparsegpt"
    if is_last and settings.recover == "lstsq":
        start = np.where(decision.keep[name], new, np.zeros_like(new))
        fitted = fit_judged(dense, decision.keep[name], start, moments)
        if fitted is None:
            decision.notes[name] = "not repaired: no fit helps on the samples held out"
        new = start if fitted is None else fitted
    decision.values[name] = new


def _same_data(model: Model, weights: Sequence[Weight]) -> Iterator[list[Weight]]:
    """Put neighbors together that are multiplied with the same value, and matrices of one tensor."""

    def key(weight: Weight) -> tuple[str, str]:
        node = model.flat.nodes[weight.reader[0]]
        data = node.input[weight.data] if weight.data is not None and weight.data < len(node.input) else ""
        return (data, "") if data else ("", weight.tensor)

    for _, group in groupby(weights, key):
        yield list(group)


def _contents(task: Task, decision: Decision, waiting: set[str], tensors: set[str] | None = None) -> dict[str, Array]:
    """Give the contents of tensors (None: all) whose weights are all decided and repaired."""
    by_tensor: dict[str, list[Weight]] = {}
    for weight in task.weights:
        if tensors is None or weight.tensor in tensors:
            by_tensor.setdefault(weight.tensor, []).append(weight)
    return {
        tensor: content_of(task.model, parts[0].source, parts, decision)
        for tensor, parts in by_tensor.items()
        if all(w.name in decision.keep and w.name not in waiting for w in parts)
    }


def content_of(model: Model, source: Source, parts: Sequence[Weight], decision: Decision) -> Array:
    """Give the new content of a tensor; matrices that are not decided stay as they are."""
    by_part = {w.part: w.name for w in parts}
    n_parts, *shape = source.layout.shape
    names = [by_part.get(k, "") for k in range(n_parts)]
    keep = [decision.keep.get(name, np.ones(shape, dtype=bool)) for name in names]
    if not any(name in decision.values for name in names):
        return contents(model, source, keep)
    dense = source.values(model)
    return contents(model, source, keep, [decision.values.get(name, dense[k]) for k, name in enumerate(names)])


def fits(weight: Weight, settings: Settings) -> str | None:
    """Say why a pattern can take nothing from a weight of this shape, None where it can."""
    pattern: Pattern = settings.pattern
    shape = "x".join(map(str, weight.shape))
    if isinstance(pattern, UnitPattern):
        try:
            takes = int(pattern.zeros_of(weight.shape).sum())
        except OptionError as error:
            return f"the pattern does not fit its shape {shape}: {error}"
        if not takes:
            return f"the pattern takes nothing from a weight of shape {shape}"
    return None
