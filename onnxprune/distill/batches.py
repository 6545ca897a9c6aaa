"""Batches to learn from: samples, mixtures of samples, and what the original gives for them.

A mixture has no label, but the original answers for it as for any input, and so a hundred samples become as many as are
wanted. Source: Beyer et al., Knowledge distillation: A good teacher is patient and consistent, CVPR 2022, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..calibration.probe import Probe
from ..calibration.session import Session
from ..data import Feed
from ..errors import ModelError
from .anchors import Anchor

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-3


class Batch(NamedTuple):
    """One feed of one or more samples, and the teacher's outputs for it."""

    feed: Feed
    wanted: list[Array]
    n: int = 1


class Teacher:
    """The original in onnxruntime, giving the tensors `names`, and behind them the anchors as the student has them."""

    def __init__(self, probe: Probe, names: Sequence[str], anchors: Sequence[Anchor], threads: int | None) -> None:
        self._anchors = list(anchors)
        asked = [*names, *(a.name for a in anchors)]
        built, outputs = probe.build(asked, {})
        self._names = [outputs[n] for n in asked]
        self._session = Session(built, probe.model.label, threads)

    def __call__(self, feed: Feed) -> list[Array]:
        """Give the outputs for one feed."""
        found = self._session.run(self._names, feed)
        n = len(found) - len(self._anchors)
        return [*found[:n], *(a.cut(x) for a, x in zip(self._anchors, found[n:], strict=True))]


def can_join(teacher: Teacher, feeds: Sequence[Feed]) -> bool:
    """Say whether samples can stand side by side along axis 0: two joined give what they give apart."""
    kinds = _kinds(feeds)
    pair = next((rows[:2] for rows in kinds if len(rows) > 1), None)
    if pair is None or any(np.ndim(a) == 0 for a in pair[0].values()):
        return False
    try:
        together = teacher(join(pair))
    except ModelError:
        return False
    for a, b, both in zip(teacher(pair[0]), teacher(pair[1]), together, strict=True):
        if a.ndim == 0 or len(both) != len(a) + len(b):
            return False
        apart = np.concatenate([a, b])
        if apart.shape != both.shape or np.abs(apart - both).max(initial=0.0) > TOLERANCE * max(np.ptp(apart), 1e-30):
            return False
    return True


def join(feeds: Sequence[Feed]) -> Feed:
    """Put feeds of equal shapes side by side."""
    return {name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]}


def joined(teacher: Teacher, feeds: Sequence[Feed], size: int) -> list[Batch]:
    """Put all feeds into batches of at most `size`, those of equal shapes together, with what the teacher gives."""
    found = []
    for rows in _kinds(feeds):
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            feed = join(part) if len(part) > 1 else part[0]
            found.append(Batch(feed, teacher(feed), len(part)))
    return found


def _kinds(feeds: Sequence[Feed]) -> list[list[Feed]]:
    """Divide feeds by the shapes of their arrays."""
    kinds: dict[tuple[tuple[str, tuple[int, ...]], ...], list[Feed]] = {}
    for feed in feeds:
        kinds.setdefault(tuple((name, np.shape(a)) for name, a in sorted(feed.items())), []).append(feed)
    return list(kinds.values())


def endless(
    teacher: Teacher, feeds: Sequence[Feed], size: int, rng: np.random.Generator, *, joins: bool
) -> Iterator[list[Batch]]:
    """Give what one step after another learns from: batches that together hold about `size` samples.

    Where samples cannot be joined, each is a batch of its own, as it is. Else every second step has mixtures.
    """
    if not joins:
        answers: dict[int, Batch] = {}
        while True:
            for at in _parts(rng.permutation(len(feeds)), size):
                yield [answers.setdefault(k, Batch(feeds[k], teacher(feeds[k]))) for k in at.tolist()]
    kinds = _kinds(feeds)
    mixes = False
    while True:
        shuffled = [[rows[k] for k in part] for rows in kinds for part in _parts(rng.permutation(len(rows)), size)]
        for k in rng.permutation(len(shuffled)):
            rows = shuffled[k]
            feed = join(rows) if len(rows) > 1 else rows[0]
            if mixes and len(rows) > 1:
                feed = mixed(feed, rng)
            mixes = not mixes
            yield [Batch(feed, teacher(feed), len(rows))]


def _parts(order: Array, size: int) -> list[Array]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def mixed(feed: Feed, rng: np.random.Generator) -> Feed:
    """Mix every sample with another: floats by weights, integers by taking a stretch of positions from the other."""
    n = len(next(iter(feed.values())))
    other = np.roll(np.arange(n), int(rng.integers(1, n)))
    part = rng.random(n, dtype=np.float32)
    low, high = np.sort(rng.random((2, n)), axis=0)
    whole = all(a.dtype.kind == "f" for a in feed.values())
    result: Feed = {}
    for name, array in feed.items():
        if whole:
            weight = part.reshape(-1, *[1] * (array.ndim - 1)).astype(array.dtype)
            result[name] = weight * array + (1 - weight) * array[other]
        elif array.ndim > 1:
            at = (np.arange(array.shape[1]) + 0.5) / array.shape[1]
            inside = ((at >= low[:, None]) & (at < high[:, None])).reshape(n, -1, *[1] * (array.ndim - 2))
            result[name] = np.where(inside, array[other], array)
        else:
            result[name] = array
    return result
