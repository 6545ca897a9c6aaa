"""Scores of units: rows gathered from every weight of a group, scored, and brought to one scale."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..axes.analysis import Analysis, Group, Member
from ..axes.labels import Labels
from ..errors import ModelError, OptionError
from .registry import Criterion, Rows, criteria
from .values import weight_values

# Numbers that are added up at once: they stay in a processor's cache.
CHUNK = 1 << 17


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
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
    if not np.isfinite(rows).all():
        raise OptionError("the weight holds values that are not finite; scores of them mean nothing")
    scores = chosen.score(rows)
    if hasattr(weight, "detach"):
        import torch

        return torch.from_numpy(scores)
    return scores


def group_scores(analysis: Analysis, group: Group, criterion: str, seed: int = 0) -> tuple[Rows, dict[str, Any]]:
    """Score the units of a group: (size,) numbers with mean 1, and what was used.

    The scores of every weight that produces or consumes the units are divided by their mean and averaged, so that
    neither a large layer nor a large group outweighs another. `random` depends on `seed` and the group's id alone.
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
    scores = [_scaled(chosen, _member_scores(analysis, chosen, m, group.size)) for m in members]
    if not scores:
        return np.ones(group.size), used
    return _scaled(chosen, np.mean(scores, axis=0)), used


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


def _member_scores(analysis: Analysis, chosen: Criterion, member: Member, size: int) -> Rows:
    """Score the units of a group by one weight."""
    if chosen.power is None:
        return chosen.score(_rows(analysis, member, size))
    name = member.initializer
    held = name in analysis.collection.codes
    array = weight_values(analysis, name) if held else analysis.model.array(name)
    sums = power_sums(array, member.axis, chosen.power)
    if not np.isfinite(sums).all():
        raise not_finite(name)
    inside = member.unit >= 0
    total = np.bincount(member.unit[inside], weights=sums[inside], minlength=size)
    return np.asarray(total ** (1 / chosen.power), dtype=np.float64)


def power_sums(array: np.ndarray[Any, Any], axis: int, power: int) -> Rows:
    """Add up |x|^power for every index along `axis`, in float64, over a few rows at a time; `power` is 1 or 2."""
    size, width = len(array), max(1, array[:1].size)
    step = max(1, CHUNK // width)
    total = np.zeros(array.shape[:1] if axis == 0 else array.shape[1:])
    for start in range(0, size, step):
        part = array[start : start + step].astype(np.float64)
        np.abs(part, out=part) if power == 1 else np.square(part, out=part)
        if axis == 0:
            total[start : start + step] = part.reshape(len(part), -1).sum(axis=1)
        else:
            total += part.sum(axis=0)
    others = tuple(k for k in range(total.ndim) if k != max(0, axis - 1))
    return np.asarray(total.sum(axis=others))


def not_finite(name: str) -> ModelError:
    """Build the error for a weight that cannot be ranked."""
    return ModelError(
        f"initializer {name!r} holds values that are not finite; its units cannot be ranked. "
        f"Leave it out with --exclude {name!r}"
    )


def _rows(analysis: Analysis, member: Member, size: int) -> Rows:
    """Gather a member's weights as one row per unit; units of fewer elements are filled up with zeros."""
    array = weight_values(analysis, member.initializer)
    slices = np.moveaxis(array, member.axis, 0).reshape(array.shape[member.axis], -1)
    if not np.isfinite(slices).all():
        raise not_finite(member.initializer)
    return gather_rows(slices, member.unit, size)


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
