"""Carriers: dead units whose constant no bias can take over, since a reader does not see it everywhere alike.

Behind a padding, a constant channel is one number inside and less at the border. Constants that differ in size alone
can share one channel: its column takes the others' columns, each times the ratio of the constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .known import Array
from .readers import Reader

MAX_RATIO = 1e4
SHAPE_RTOL = 1e-5

Key = tuple[int, int]


@dataclass(frozen=True)
class Transfer:
    """At one reader, columns of unit `source` are added to those of unit `target`.

    `pairs` are (index of the source, index of the target, ratio).
    """

    reader: int
    group: int
    source: int
    target: int
    pairs: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class Need:
    """What one unit gives one reader: at each `index` of the data a constant of size `peaks`, all of one shape."""

    reader: int
    index: tuple[int, ...]
    peaks: tuple[float, ...]


Needs = Mapping[int, Mapping[Key, Need]]


class Shapes:
    """Numbers the shapes of constants that one reader gets, alike but for rounding."""

    def __init__(self) -> None:
        self._seen: list[list[Array]] = []

    def number(self, reader: Reader, index: Sequence[int]) -> tuple[int, tuple[float, ...]]:
        """Give the number of a unit's shape, and the size of its constant at every index."""
        assert reader.slabs is not None
        shape, peaks = [], []
        for i in index:
            slab = np.asarray(reader.slabs[i], dtype=np.float64)
            peak = float(slab[np.argmax(np.abs(slab))])
            shape.append(slab[:1] / peak if (slab == slab[0]).all() else slab / peak)
            peaks.append(peak)
        number = next((k for k, other in enumerate(self._seen) if _alike(shape, other)), len(self._seen))
        if number == len(self._seen):
            self._seen.append(shape)
        return number, tuple(peaks)


def _alike(one: list[Array], two: list[Array]) -> bool:
    return len(one) == len(two) and all(
        a.shape == b.shape and bool((np.abs(a - b) <= SHAPE_RTOL).all()) for a, b in zip(one, two, strict=True)
    )


def choose_carriers(needs: Needs) -> dict[Key, int]:
    """Choose a unit for every shape of constant at every reader; as few as a greedy search finds.

    The unit that serves the most others comes first, then the one with the largest constants, then the lower index.
    """
    members: dict[Key, list[int]] = {}
    for unit, keys in needs.items():
        for key in keys:
            members.setdefault(key, []).append(unit)
    chosen: dict[Key, int] = {}
    while len(chosen) < len(members):
        left = [key for key in members if key not in chosen]
        serving = {unit for key in left for unit in members[key]}
        best = max(sorted(serving), key=lambda u: (_served(needs[u], left, members), _strength(u, needs, members), -u))
        chosen.update((key, best) for key in needs[best] if key not in chosen)
    return chosen


def _served(own: Iterable[Key], left: Sequence[Key], members: Mapping[Key, Sequence[int]]) -> int:
    return sum(len(members[key]) for key in own if key in left)


def _strength(unit: int, needs: Needs, members: Mapping[Key, Sequence[int]]) -> float:
    """Give how large a unit's constants are beside those it would carry, at the reader where they are smallest."""
    ratios = []
    for key, need in needs[unit].items():
        largest = max(abs(p) for u in members[key] for p in needs[u][key].peaks)
        ratios.append(min(abs(p) for p in need.peaks) / largest)
    return min(ratios)


def transfers_to(carriers: Mapping[Key, int], needs: Needs, group: int, unit: int) -> list[Transfer] | None:
    """Give the columns that leave a unit; None where its constant is too large beside that of a carrier."""
    rows = []
    for key, need in needs[unit].items():
        target = needs[carriers[key]][key]
        pairs = tuple(
            (i, j, a / b) for i, j, a, b in zip(need.index, target.index, need.peaks, target.peaks, strict=True)
        )
        rows.append(Transfer(need.reader, group, unit, carriers[key], pairs))
    return None if any(abs(ratio) > MAX_RATIO for row in rows for _, _, ratio in row.pairs) else rows
