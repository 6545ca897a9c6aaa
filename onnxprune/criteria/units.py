"""Scores of units: rows gathered from every weight of a group, scored, and brought to one scale."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..axes.analysis import Analysis, Group, Member
from ..axes.labels import Labels
from ..errors import ModelError, OptionError
from .registry import Criterion, Rows, criteria
from .values import weight_values

# Numbers that are scored at once: they stay in a processor's cache.
CHUNK = 1 << 18


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
    """Score the units of a group by one weight; where rows do not count on each other, a few at a time."""
    name = member.initializer
    plain = name not in analysis.collection.codes
    array = analysis.model.array(name) if plain else weight_values(analysis, name)
    slices = np.moveaxis(array, member.axis, 0)
    at_once = max(1, CHUNK // max(1, slices[:1].size)) if chosen.rowwise else None
    parts = [chosen.score(_finite(rows, name)) for rows in unit_rows(slices, member.unit, size, at_once)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _finite(rows: Rows, name: str) -> Rows:
    if not np.isfinite(rows).all():
        raise ModelError(
            f"initializer {name!r} holds values that are not finite; its units cannot be ranked. "
            f"Leave it out with --exclude {name!r}"
        )
    return rows


def unit_rows(slices: np.ndarray[Any, Any], unit: Labels, size: int, at_once: int | None = None) -> Iterator[Rows]:
    """Put the slices (indices, ...) of each unit side by side as float64, about `at_once` slices at a time, or all.

    Every part is (units, most indices of a unit * elements); units of fewer indices are filled up with zeros.
    """
    index = np.flatnonzero(unit >= 0)
    order = index[np.argsort(unit[index], kind="stable")]
    counts = np.bincount(unit[order], minlength=size)
    ends = np.concatenate([[0], np.cumsum(counts)])
    most = int(counts.max(initial=1))
    step = size if at_once is None else max(1, at_once // most)
    for start in range(0, size, step):
        stop = min(size, start + step)
        held, n = order[ends[start] : ends[stop]], counts[start:stop]
        run = len(held) > 0 and held[-1] - held[0] == len(held) - 1 and bool((np.diff(held) == 1).all())
        found = slices[held[0] : held[-1] + 1] if run else slices[held]
        values = np.asarray(found.reshape(len(held), -1), dtype=np.float64)
        if (n == most).all():
            yield values.reshape(stop - start, -1)
            continue
        rows = np.zeros((stop - start, most, values.shape[1]))
        owner = np.repeat(np.arange(stop - start), n)
        rows[owner, np.arange(len(held)) - np.repeat(ends[start:stop] - ends[start], n)] = values
        yield rows.reshape(stop - start, -1)
