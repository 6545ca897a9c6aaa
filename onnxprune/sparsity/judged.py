"""Least squares that is judged: its strength is chosen on feeds held out, and so is whether it is done at all.

Rows of one feed are alike: tokens of a text, positions of an image. Their number says little about how much of a fit is
chance, and only other feeds tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any

import numpy as np

from ..data import Data, Feed
from ..masks.refit import refit
from ..masks.wanda import grouped_rows
from ..recover.split import held_out

Array = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
DAMPS = (1.0, 0.1, 0.01)
LEAST_DAMP = 0.01
# Enough to rank them: each starts where the one before ended.
TRIAL_STEPS = 25


def in_parts(feeds: Data) -> list[Data]:
    """Give the feeds to learn from and those held out; one feed alone stays whole."""
    apart = held_out(sum(1 for _ in feeds))
    if not any(apart):
        return [feeds]

    def some(*, held: bool) -> Iterator[Feed]:
        return compress(feeds, [a is held for a in apart])

    return [Data(feeds.label, partial(some, held=held)) for held in (False, True)]


@dataclass(frozen=True)
class Moments:
    """Second moments of what flows into a weight, (groups, features, features), over `n_rows` rows.

    `gram` is E[x x^T] now, `cross` E[x z^T] of now with what flowed before any change. `judge` are those of feeds held
    out, None where there are none.
    """

    gram: Array
    cross: Array
    n_rows: int
    judge: Moments | None = None

    @property
    def damp(self) -> float:
        """The ridge for a fit that nothing judges: moments of few rows have an error of about features over rows."""
        n_features: int = self.gram.shape[-1]
        return max(LEAST_DAMP, n_features / max(self.n_rows, 1))

    @property
    def whole(self) -> Moments:
        """Moments of all feeds together."""
        if self.judge is None:
            return self
        n = self.n_rows + self.judge.n_rows
        share, rest = self.n_rows / n, self.judge.n_rows / n
        return Moments(share * self.gram + rest * self.judge.gram, share * self.cross + rest * self.judge.cross, n)

    def error(self, new: Array, dense: Array) -> float:
        """Give E|V x - W z|^2 of new weights V for dense ones W, less a part that is the same for every V."""
        v, w = (grouped_rows(array, len(self.gram)) for array in (new, dense))
        return float(np.sum(v * (v @ self.gram - 2 * (w @ self.cross.swapaxes(1, 2)))))


def fit_judged(dense: Array, keep: Mask, start: Array, moments: Moments) -> Array | None:
    """Give weights on the support `keep` that bring the layer's output near the dense one's; None if `start` is best.

    A ridge pulls them towards the dense weights, the strongest first. What does best on the feeds held out is fitted
    anew to all of them. See `refit` for the arrays.
    """
    if moments.judge is None:
        return refit(dense, keep, moments.gram, cross=moments.cross, start=start, damp=moments.damp)
    best, least, new = None, moments.judge.error(start, dense), start
    for damp in DAMPS:
        new = refit(dense, keep, moments.gram, cross=moments.cross, start=new, damp=damp, steps=TRIAL_STEPS)
        error = moments.judge.error(new, dense)
        if error < least:
            best, least = damp, error
    if best is None:
        return None
    return refit(dense, keep, moments.whole.gram, cross=moments.whole.cross, start=start, damp=best)
