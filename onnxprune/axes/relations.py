"""What one node can say about axes: six relations, and where sizes are written.

An axis is one dimension of one value. Rules state relations; the engine derives everything else from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Index = np.ndarray[Any, np.dtype[np.int64]]


class Axis(NamedTuple):
    """One dimension of one value: a number in the collection and its size."""

    id: int
    size: int


@dataclass(frozen=True, slots=True)
class Tie:
    """`a` and `b` have the same size and lose the same indices."""

    a: int
    b: int
    node: int


@dataclass(frozen=True, slots=True)
class Contract:
    """A tie that is summed away; `b` is None for a plain sum along `a`.

    Exact when either side is zero at a removed index of the masked model.
    """

    a: int
    b: int | None
    node: int


@dataclass(frozen=True, slots=True)
class Regroup:
    """Both lists of axes enumerate the same elements in row-major order."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    node: int


@dataclass(frozen=True, slots=True)
class Select:
    """`target[k]` is `source[index[k]]`."""

    source: int
    index: Index
    target: int
    node: int


@dataclass(frozen=True, slots=True)
class Mix:
    """A statistic is taken over the axis: removal is approximate."""

    axis: int
    why: str
    node: int


@dataclass(frozen=True, slots=True)
class Freeze:
    """Nothing on the axis may go; `index` limits it to some of its indices."""

    axis: int
    why: str
    node: int
    index: Index | None = None


Relation = Tie | Contract | Regroup | Select | Mix | Freeze


@dataclass(frozen=True, slots=True)
class SizeBinding:
    """An integer in the graph counts the kept indices of `axis` from `since` up to `upto` (the end when None).

    `where` is an attribute's name or an input slot; `item` the element of a list or tensor, None for a lone integer.
    """

    node: int
    where: str | int
    item: int | None
    axis: int
    upto: int | None = None
    since: int = 0


@dataclass(frozen=True, slots=True)
class IndexBinding:
    """Constant indices into `source` (input slot `where`), one for every index of `target` in row-major order."""

    node: int
    where: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class DefaultBinding:
    """An attribute that is left out, whose default follows the size of `axis`: written as `value` when that shrinks."""

    node: int
    where: str
    axis: int
    value: float


Binding = SizeBinding | IndexBinding | DefaultBinding


@dataclass(frozen=True, slots=True)
class Codes:
    """A weight stored as integer codes: its values are (code - zero point) * scale.

    `scale` and `zero_point` name initializers, "" for none (1 and `default`). They are brought to the shape `spread`
    (None: a single number) and each of its axes is stretched to the weight's, by `block` or as often as it fits. Below
    8 `bits` the weight's last axis holds several codes a byte, low bits first, and so does a zero point of bytes.
    """

    scale: str
    zero_point: str
    spread: tuple[int, ...] | None
    bits: int = 8
    default: int = 0
    block: int = 0


def overlapping(sizes: Sequence[int], r: Regroup) -> list[tuple[int, int]]:
    """Pair axes of the two sides that share a factor: their spans of the running product overlap."""
    spans = []
    for side in (r.left, r.right):
        position, row = 1, []
        for a in side:
            row.append((a, position, position * sizes[a]))
            position *= sizes[a]
        spans.append(row)
    return [(a, b) for a, s, e in spans[0] for b, t, f in spans[1] if s < f and t < e]
