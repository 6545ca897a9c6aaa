"""Samples in two parts: those that repairs are made from, and those that judge them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data import Feed

EVERY = 4
SEED = 0


def held_out(n_feeds: int) -> list[bool]:
    """Say which feeds are held out: one of every four, drawn at random so that no order of the samples matters.

    Of two or three it is one, of one none.
    """
    if n_feeds < 2:
        return [False] * n_feeds
    drawn = np.random.default_rng(SEED).integers(EVERY, size=-(-n_feeds // EVERY))
    apart = {EVERY * k + int(j) for k, j in enumerate(drawn)} & set(range(n_feeds)) or {n_feeds - 1}
    return [k in apart for k in range(n_feeds)]


def split(feeds: Sequence[Feed]) -> tuple[list[Feed], list[Feed]]:
    """Give the feeds to learn from and those held out; one feed alone is both."""
    apart = held_out(len(feeds))
    learn = [f for f, held in zip(feeds, apart, strict=True) if not held]
    return learn, [f for f, held in zip(feeds, apart, strict=True) if held] or learn
