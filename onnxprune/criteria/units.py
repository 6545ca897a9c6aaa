"""Scores of units: rows gathered from every weight of a group, scored, and brought to one scale."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np

from ..axes.analysis import Analysis
from ..axes.groups import Group, Member
from ..axes.labels import Labels
from ..errors import ModelError, OptionError
from ..graph.payload import split_axis
from ..graph.sizes import tensor_nbytes
from ..ordered import in_order, threads_for
from .registry import Criterion, Rows, criteria
from .values import weight_values

# Numbers that are added up at once: they stay in a processor's cache.
CHUNK = 1 << 17
MOST_IN_A_ROW = 1 << 20
# A weight and one of its axes.
Side: TypeAlias = tuple[str, int]


def unit_scores(weight: Any, criterion: str = "l2", axis: int = 0) -> Any:
    """Score the slices of one array along `axis`: one number per index, higher is worth keeping.

    `weight` is a numpy array or a torch tensor of any float type; so is the result (float64). Raises
    `UnknownNameError` for an unknown criterion and `OptionError` for a non-finite weight.
    """
    chosen = criteria[criterion]
    if chosen.needs:
        raise needs_data(chosen)
    array = np.asarray(weight.detach().cpu().double() if hasattr(weight, "detach") else weight)
    if array.ndim == 0 or not -array.ndim <= axis < array.ndim:
        raise OptionError(f"axis {axis} is none of a weight of shape {array.shape}")
    rows = _slices(array, axis).astype(np.float64)
    if not np.isfinite(rows).all():
        raise OptionError("the weight holds values that are not finite; scores of them mean nothing")
    scores = chosen.score(rows)
    if hasattr(weight, "detach"):
        import torch

        return torch.from_numpy(scores)
    return scores


def score_groups(
    analysis: Analysis, groups: Sequence[Group], criterion: str, seed: int = 0
) -> dict[str, tuple[Rows, dict[str, Any]]]:
    """Score the units of groups by id, as `group_scores` does; every weight is read once for all of them."""
    chosen = criteria[criterion] if criterion != "random" else None
    sums = _all_sums(analysis, groups, chosen) if chosen is not None and chosen.power is not None else {}
    return {group.id: group_scores(analysis, group, criterion, seed, sums) for group in groups}


def group_scores(
    analysis: Analysis, group: Group, criterion: str, seed: int = 0, sums: Mapping[Side, Rows] | None = None
) -> tuple[Rows, dict[str, Any]]:
    """Score the units of a group: (size,) numbers with mean 1, and what was used.

    The scores of every weight that produces or consumes the units are divided by their mean and averaged, so that
    neither a large layer nor a large group outweighs another. `random` depends on `seed` and the group's id alone.
    `sums` are powers that were added up before, by weight and axis.
    """
    if criterion == "random":
        digest = hashlib.sha256(f"{seed}/{group.id}".encode()).digest()
        numbers = np.random.default_rng(int.from_bytes(digest[:8], "big")).random(group.size)
        return numbers, {"criterion": "random", "seed": seed}
    chosen = criteria[criterion]
    if chosen.needs:
        raise needs_data(chosen)
    used: dict[str, Any] = {"criterion": criterion}
    members = _members(analysis, group, chosen)
    if chosen.scales_only and not members:
        used["instead"] = "l2"
        chosen = criteria["l2"]
        members = _members(analysis, group, chosen)
    if chosen.power is not None:
        sums = sums or _all_sums(analysis, [group], chosen)
        scores = [_norms(sums[m.initializer, m.axis], m, chosen.power, group.size) for m in members]
    else:
        scores = [chosen.score(_rows(analysis, m, group.size)) for m in members]
    if not scores:
        return np.ones(group.size), used
    return _scaled(chosen, np.mean([_scaled(chosen, score) for score in scores], axis=0)), used


def needs_data(chosen: Criterion) -> OptionError:
    """Build the error for a criterion that looks at data where there is none."""
    return OptionError(
        f"criterion {chosen.name!r} needs data to run the model on: give samples (--data SOURCE), or a criterion of "
        "weights alone such as l2"
    )


def _scaled(chosen: Criterion, score: Rows) -> Rows:
    mean = float(score.mean())
    return score if chosen.normalized or mean <= 0 else score / mean


def _members(analysis: Analysis, group: Group, chosen: Criterion) -> list[Member]:
    """Choose the weights that count: producers and consumers, or the scales of normalizations."""
    if chosen.scales_only:
        return _distinct([m for m in group.members if m.initializer in analysis.scale_vectors])
    members = _distinct([m for m in group.members if m.role in ("output", "input") and _is_float(analysis, m)])
    return members or _distinct([m for m in group.members if _is_float(analysis, m)])


def _distinct(members: list[Member]) -> list[Member]:
    found: dict[tuple[str, int], Member] = {}
    for m in members:
        found.setdefault((m.initializer, m.axis), m)
    return list(found.values())


def _is_float(analysis: Analysis, member: Member) -> bool:
    return analysis.model.tensors[member.initializer].data_type not in (5, 6, 7, 8, 9, 12, 13)


def _norms(sums: Rows, member: Member, power: int, size: int) -> Rows:
    """Score the units of a group by one weight, from the powers of its slices: their p-norms."""
    if not np.isfinite(sums).all():
        raise not_finite(member.initializer)
    inside = member.unit >= 0
    total = np.bincount(member.unit[inside], weights=sums[inside], minlength=size)
    return np.asarray(total ** (1 / power), dtype=np.float64)


def _all_sums(analysis: Analysis, groups: Sequence[Group], chosen: Criterion) -> dict[Side, Rows]:
    """Add up the powers of all slices that count for the groups, reading every weight once, several at a time."""
    axes: dict[str, set[int]] = {}
    for group in groups:
        for m in _members(analysis, group, chosen):
            axes.setdefault(m.initializer, set()).add(m.axis)

    def add(name: str) -> list[Rows]:
        return weight_sums(analysis, name, sorted(axes[name]), chosen.power or 1)

    # Codes are turned into numbers as a whole, of which there is room for one weight at a time.
    coded = [name for name in axes if name in analysis.collection.codes]
    plain = [name for name in axes if name not in analysis.collection.codes]
    n_bytes = sum(tensor_nbytes(analysis.model.tensors[name]) for name in plain)
    results = chain(in_order(add, plain, threads_for(n_bytes)), map(add, coded))
    return {
        (name, axis): sums
        for name, rows in zip((*plain, *coded), results, strict=True)
        for axis, sums in zip(sorted(axes[name]), rows, strict=True)
    }


def weight_sums(analysis: Analysis, name: str, axes: Sequence[int], power: int) -> list[Rows]:
    """Add up |x|^power for every index along each of the axes of a weight, in float64; `power` is 1 or 2."""
    if name in analysis.collection.codes:
        values = weight_values(analysis, name)
        return power_sums(values.shape, lambda split: [values.reshape(-1, *values.shape[split:])], axes, power)
    dims = tuple(analysis.model.tensors[name].dims)
    return power_sums(dims, lambda split: analysis.model.rows(name, split, CHUNK), axes, power)


def power_sums(
    dims: tuple[int, ...], rows: Callable[[int], Iterable[np.ndarray[Any, Any]]], axes: Sequence[int], power: int
) -> list[Rows]:
    """Add up the powers of a tensor's elements; `rows(split)` gives it a few rows at a time, as `Model.rows` does."""
    split = split_axis(dims, MOST_IN_A_ROW)
    outer, inner = np.zeros(math.prod(dims[:split])), np.zeros(dims[split:])
    start = 0
    for block in rows(split):
        part = block.astype(np.float64)
        np.abs(part, out=part) if power == 1 else np.square(part, out=part)
        if any(axis < split for axis in axes):
            part.reshape(len(part), -1).sum(axis=1, out=outer[start : start + len(part)])
        if any(axis >= split for axis in axes):
            inner += part.sum(axis=0)
        start += len(part)
    leading = outer.reshape(dims[:split])
    return [
        leading.sum(axis=_others(leading, axis)) if axis < split else inner.sum(axis=_others(inner, axis - split))
        for axis in axes
    ]


def _others(array: Rows, axis: int) -> tuple[int, ...]:
    return tuple(k for k in range(array.ndim) if k != axis)


def not_finite(name: str) -> ModelError:
    """Build the error for a weight that cannot be ranked."""
    return ModelError(
        f"initializer {name!r} holds values that are not finite; its units cannot be ranked. "
        f"Leave it out with --exclude {name!r}"
    )


def _rows(analysis: Analysis, member: Member, size: int) -> Rows:
    """Gather a member's weights as one row per unit; units of fewer elements are filled up with zeros."""
    array = weight_values(analysis, member.initializer)
    slices = _slices(array, member.axis)
    if not np.isfinite(slices).all():
        raise not_finite(member.initializer)
    return gather_rows(slices, member.unit, size)


def _slices(array: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    """Lay the slices along an axis out as rows."""
    size = array.shape[axis]
    return np.moveaxis(array, axis, 0).reshape(size, array.size // max(1, size))


def gather_rows(slices: Rows, unit: Labels, size: int) -> Rows:
    """Put the slices (indices, elements) of each unit side by side: (size, most indices of a unit * elements)."""
    index = np.flatnonzero(unit >= 0)
    order = index[np.argsort(unit[index], kind="stable")]
    owner = unit[order]
    counts = np.bincount(owner, minlength=size)
    most = int(counts.max(initial=1))
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.zeros((size, most, slices.shape[1]))
    rows[owner, place] = slices[order]
    return rows.reshape(size, -1)
