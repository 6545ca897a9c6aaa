"""Carriers: dead units that stay, since no bias can say what they give, and say it for the others.

Behind a padding, a constant channel is one number inside and less at the border; behind a normalization written out, a
constant is scaled by what the other channels are; a recurrent unit with a bias runs from zero to where it rests. Each
is a vector of what a unit gives at every place, moment or signal. A unit whose vector is a combination of others' can
go: its columns are added to theirs, each times its part in the combination.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .known import Mask
from .readers import Floats, Reader, Status

MAX_RATIO = 1e4
Moves = dict[int, tuple[tuple[int, float], ...]]
# What may be left of a vector, of its length: rounding in the constants themselves.
RTOL = 1e-6


@dataclass(frozen=True)
class Transfer:
    """At one reader, what `source` gives is given by other units instead.

    `moves` maps indices of the source to the indices that take them over, with their parts; `rest` is what a bias adds.
    What indices in `mapped` give is added behind the reader place by place.
    """

    reader: int
    group: int
    source: int
    targets: frozenset[int]
    moves: Moves
    rest: dict[int, float]
    mapped: frozenset[int] = frozenset()


@dataclass(frozen=True)
class View:
    """What the units of a list give one reader, each at its index in the data; `needs` says for which it matters.

    `rows` are vectors (units, K), without what a bias can say; `constant` (units,) is how much of that was left out.
    """

    reader: int
    index: tuple[int, ...]
    needs: Mask
    rows: Floats
    constant: Floats


def view(k: int, reader: Reader, index: Sequence[int], live: Mask) -> View:
    """Look at units through a reader; an index below zero is of a unit that is not there."""
    assert reader.table is not None
    at = np.asarray(index)
    there = (at >= 0) & (reader.status[at] <= int(Status.SHAPED))
    rows = np.where(there[:, None], reader.table[at], 0).astype(np.float64)
    constant = np.zeros(len(at))
    if reader.one is not None:
        constant = rows @ reader.one / (reader.one @ reader.one)
        rows = rows - np.outer(constant, reader.one)
    return View(k, tuple(index), there & live & (reader.status[at] == int(Status.SHAPED)), _shortened(rows), constant)


def _shortened(rows: Floats) -> Floats:
    """Turn vectors so that they need no more entries than there are of them; lengths and angles stay."""
    if rows.shape[1] <= rows.shape[0]:
        return rows
    return np.asarray(np.linalg.qr(rows.T).R.T)


def choose_carriers(n: int, views: Sequence[View]) -> list[int]:
    """Choose among n units until all others are combinations of the chosen, at every view; as few as a search finds.

    The unit of which most is left comes first, beside the largest at each view, then the lower index.

    Source: QR with column pivoting (Businger and Golub 1965), with one choice for several matrices.
    """
    left = [v.rows for v in views]
    allowed = [RTOL * np.linalg.norm(v.rows, axis=1) for v in views]
    chosen: list[int] = []
    while True:
        lengths = [np.linalg.norm(rows, axis=1) for rows in left]
        open_ = [v.needs & (length > least) for v, length, least in zip(views, lengths, allowed, strict=True)]
        score = np.zeros(n)
        for length, wanted in zip(lengths, open_, strict=True):
            if wanted.any():
                score += (length / length[wanted].max()) ** 2
        score[chosen] = 0
        if not score.any():
            return chosen
        best = int(np.argmax(np.round(score, 9)))
        chosen.append(best)
        left = [_without(rows, best) for rows in left]


def _without(rows: Floats, best: int) -> Floats:
    """Take out of every row what one of them says."""
    length = np.linalg.norm(rows[best])
    if length == 0:
        return rows
    direction = rows[best] / length
    rest = rows - np.outer(rows @ direction, direction)
    rest[best] = 0
    return np.asarray(rest)


def parts(view: View, carriers: Sequence[int]) -> Floats:
    """Give every unit as a combination of carriers: (units, carriers)."""
    basis = view.rows[list(carriers)]
    return np.asarray(np.linalg.lstsq(basis.T, view.rows.T, rcond=1e-12)[0].T)
