"""Search the order of input channels that keeps most under N:M.

N:M keeps the N largest of every M neighbors in a row. Which channels are neighbors is free: the search moves channels
between groups of M until no exchange of two channels helps, perturbs the result, and goes on from the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import OptionError

Array = np.ndarray[Any, Any]
Labels = np.ndarray[Any, np.dtype[np.int64]]

# Elements looked at per channel before the search stops; 1e9 take about a second of one core.
WORK_PER_CHANNEL = 4_000_000
# What an attempt costs beside the elements it looks at, in the same measure.
OVERHEAD = 1_000_000
# One climb from a fresh start looks at all rows for all pairs of channels about this often.
LOOKS = 6
# Attempts per channel without a better result before the search stops.
PATIENCE = 2
# Channels exchanged at random in one attempt.
SHAKEN = 4
# Elements of one temporary array: it stays in the second-level cache.
CHUNK = 1 << 16
EPSILON = 1e-6


@dataclass(frozen=True)
class Order:
    """An order of channels, `permutation[k]` is the channel at position k, with what N:M keeps before and after.

    Magnitudes are sums over all rows, float64; `most` is a bound on what any order can keep: the largest N/M of all.
    """

    permutation: Labels
    before: float
    after: float
    most: float


def kept_magnitude(weight: Array, keep: int = 2, group: int = 4) -> float:
    """Sum the absolute values N:M keeps of a (rows, channels) array: the `keep` largest of every `group` neighbors.

    A last group that is not full counts as filled up with zeros.
    """
    rows, channels = weight.shape
    n_groups = -(-channels // group)
    full = np.zeros((rows, n_groups * group), dtype=weight.dtype)
    np.abs(weight, out=full[:, :channels])
    blocks = full.reshape(rows, n_groups, group)
    if keep < group:
        blocks = np.partition(blocks, group - keep, axis=2)[:, :, group - keep :]
    return float(blocks.sum(dtype=np.float64))


def search_order(
    magnitude: Array,
    keep: int = 2,
    group: int = 4,
    *,
    classes: Labels | None = None,
    work: int | None = None,
    seed: int = 0,
) -> Order:
    """Find an order of the channels of a (rows, channels) array under which N:M keeps much magnitude.

    Only the absolute values count. Several consumers of the same channels are searched together by laying their rows
    one below the other. Channels change places inside their class; those of class -1 stay (None: one class).
    The result keeps at least as much as the present order, and is the same at every run. `work` bounds the time by the
    number of elements looked at, 4e6 per channel by default: about 3 seconds of one core for 512 channels. A climb
    looks at about 6 * channels^2 * rows; where that is more than `work`, it runs on evenly spaced rows. Raises
    `OptionError` for arrays of another rank and impossible N:M.

    Source: the objective is that of Pool and Yu, "Channel Permutations for N:M Sparsity" (NeurIPS 2021), eq. 2; the
    exchange of channels between groups is their greedy channel swap, here evaluated for all pairs at once.
    """
    if magnitude.ndim != 2:
        raise OptionError(f"channels are put in order in a (rows, channels) array, not in one of {magnitude.ndim} axes")
    if not 0 < keep <= group:
        raise OptionError(f"{keep}:{group} keeps {keep} of every {group}; give N:M with 0 < N <= M")
    rows, channels = magnitude.shape
    exact = np.abs(magnitude.astype(np.float64))
    before = kept_magnitude(exact, keep, group)
    free = np.zeros(channels, dtype=np.int64) if classes is None else np.asarray(classes, dtype=np.int64)
    n_groups = -(-channels // group)
    identity = np.arange(channels)
    if keep == group or n_groups < 2 or not rows:
        return Order(identity, before, before, _most(exact, keep, group, before))
    budget = WORK_PER_CHANNEL * channels if work is None else work
    rows_seen = exact[:: max(1, -(-LOOKS * channels * channels * rows // max(budget, 1)))]
    padded = np.zeros((len(rows_seen), n_groups * group), dtype=np.float32)
    padded[:, :channels] = rows_seen / max(float(rows_seen.max()), np.finfo(np.float64).tiny)
    padded_classes = np.full(n_groups * group, -1)
    padded_classes[:channels] = free
    start = max((identity, _dealt(exact, free, group)), key=lambda order: kept_magnitude(exact[:, order], keep, group))
    start = np.concatenate([start, np.arange(channels, n_groups * group)])
    found = _Search(padded, padded_classes, keep, group, budget).run(start, np.random.default_rng(seed))[:channels]
    after = kept_magnitude(exact[:, found], keep, group)
    if after <= before:
        found, after = identity, before
    return Order(found, before, after, _most(exact, keep, group, after))


def _most(exact: Array, keep: int, group: int, least: float) -> float:
    """Sum the largest elements of each row, as many as N:M may keep; never less than what an order does keep."""
    channels = exact.shape[1]
    whole, rest = divmod(channels, group)
    n = whole * keep + min(keep, rest)
    if n >= channels:
        return float(exact.sum())
    return max(float(np.partition(exact, channels - n, axis=1)[:, channels - n :].sum()), least)


def _dealt(magnitude: Array, classes: Labels, group: int) -> Labels:
    """Deal each class out by norm: neighbors are strong and weak, so that strong channels do not meet."""
    order = np.arange(len(classes))
    for label in np.unique(classes[classes >= 0]):
        places = np.flatnonzero(classes == label)
        ranked = places[np.argsort(-magnitude[:, places].sum(axis=0), kind="stable")]
        # Places in the order of their position inside a group: the strongest go to the first place of each group.
        order[places[np.argsort(places % group, kind="stable")]] = ranked
    return order


class _Search:
    """Local search by exchanges.

    `replaced[c, d]` is what the group of channel c keeps with d in the place of c; `gain[c, d]` what exchanging the two
    brings, -inf where they may not be exchanged.
    """

    def __init__(self, magnitude: Array, classes: Labels, keep: int, group: int, work: int) -> None:
        # Channels are rows here: the comparisons run along contiguous memory.
        self.columns = np.ascontiguousarray(magnitude.T)
        self.classes = classes
        self.keep, self.group = keep, group
        self.n = len(classes)
        self.movable = np.flatnonzero(classes >= 0)
        self.left = work
        self.order: Labels = np.arange(self.n)
        self.place: Labels = np.arange(self.n)
        self.kept: Array = np.zeros(self.n // group)
        self.replaced: Array = np.zeros((self.n, self.n), dtype=np.float32)
        self.gain: Array = np.zeros((self.n, self.n), dtype=np.float32)

    def run(self, start: Labels, rng: np.random.Generator) -> Labels:
        """Improve an order until the work is used up or nothing better is found for long; give the best."""
        self.order, self.place = start.copy(), np.argsort(start)
        self._refresh(np.arange(self.n // self.group))
        self._climb()
        idle = 0
        while idle < PATIENCE * self.n and self.left > 0 and len(self.movable) > 1:
            most = self.kept.sum()
            saved = [a.copy() for a in (self.order, self.place, self.kept, self.replaced, self.gain)]
            self._shake(rng)
            self._climb()
            total = self.kept.sum()
            idle = 0 if total > most * (1 + EPSILON) else idle + 1
            if total < most:
                self.order, self.place, self.kept, self.replaced, self.gain = saved
        return self.order

    def _refresh(self, groups: Labels) -> None:
        """Work out anew what some groups keep, and would keep with any channel in the place of one of theirs.

        Without one channel, a group keeps its strongest keep - 1 in a row, and the larger of the next and the newcomer.
        """
        rows = self.columns.shape[1]
        step = max(1, CHUNK // rows)
        buffer = np.empty((step, rows), dtype=np.float32)
        weakest = self.group - self.keep
        members = self.order.reshape(-1, self.group)[groups]
        for g, channels in zip(groups.tolist(), members, strict=True):
            own = self.columns[channels]
            self.kept[g] = np.partition(own, weakest, axis=0)[weakest:].sum(dtype=np.float64)
            for k, channel in enumerate(channels.tolist()):
                rest = np.sort(np.delete(own, k, axis=0), axis=0)[::-1]
                base = rest[: self.keep - 1].sum(dtype=np.float64)
                for first in range(0, self.n, step):
                    part = self.columns[first : first + step]
                    most = np.maximum(part, rest[self.keep - 1], out=buffer[: len(part)])
                    # No matrix product: its rounding would depend on the number of threads.
                    self.replaced[channel, first : first + step] = base + most.sum(axis=1)
        self._weigh(members.ravel())
        self.left -= members.size * self.n * rows

    def _weigh(self, channels: Labels) -> None:
        """Bring the gains of exchanging these channels with any other up to date."""
        group = self.place // self.group
        kept = self.kept[group]
        rows = self.replaced[channels] + self.replaced[:, channels].T
        rows -= (kept[channels, None] + kept[None, :]).astype(np.float32)
        apart = self.classes[channels, None] != self.classes[None, :]
        rows[apart | (group[channels, None] == group[None, :]) | (self.classes[channels, None] < 0)] = -np.inf
        self.gain[channels] = rows
        self.gain[:, channels] = rows.T

    def _climb(self) -> None:
        """Make the best exchanges, no two in one group at a time, until none helps."""
        least = EPSILON * max(float(self.kept.mean()), 1e-30)
        while self.left > 0:
            # The best partner of each channel; among equals the first.
            partner = self.gain.argmax(axis=1)
            value = self.gain[np.arange(self.n), partner]
            helpful = np.flatnonzero(value > least)
            touched: set[int] = set()
            for c in helpful[np.argsort(-value[helpful], kind="stable")].tolist():
                d = int(partner[c])
                pair = {int(self.place[c]) // self.group, int(self.place[d]) // self.group}
                if not pair & touched:
                    touched |= pair
                    self._exchange(c, d)
            self.left -= self.n * self.n + OVERHEAD
            if not touched:
                return
            self._refresh(np.array(sorted(touched)))

    def _exchange(self, c: int, d: int) -> None:
        i, j = self.place[c], self.place[d]
        self.order[i], self.order[j] = d, c
        self.place[c], self.place[d] = j, i

    def _shake(self, rng: np.random.Generator) -> None:
        """Exchange a few channels at random, each with one of its own class."""
        touched: set[int] = set()
        for c in rng.choice(self.movable, size=min(SHAKEN, len(self.movable)), replace=False).tolist():
            others = self.movable[self.classes[self.movable] == self.classes[c]]
            d = int(rng.choice(others))
            touched |= {int(self.place[c]) // self.group, int(self.place[d]) // self.group}
            self._exchange(c, d)
        self._refresh(np.array(sorted(touched), dtype=np.int64))
