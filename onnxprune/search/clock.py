"""The clock of a search: the original and a smaller model in turns, on one feed, in onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from ..graph.model import Model
from ..graph.session import open_session, run
from ..verification.latency import Latency, measure_latency
from ..verification.verifier import LENGTHS, runnable_feeds


class Clock:
    """Times models against the original on one random sample.

    `input_shapes` are the sizes of dynamic axes, `threads` those of onnxruntime, whose own choice None is.
    """

    MOST_ROUNDS = 1000

    def __init__(
        self,
        original: Model,
        *,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        threads: int | None = None,
        seed: int = 0,
    ) -> None:
        self._original = original
        self._threads = threads
        tries = [(input_shapes, 1, None), *((None, 1, length) for length in LENGTHS)]
        session = open_session(original, threads=threads)
        feeds, _ = runnable_feeds(original, session, seed, tries)
        self._feed = next(iter(feeds.start()))
        start = time.perf_counter()
        run(session, self._feed, original.label)
        self._seconds_per_round = 2 * (time.perf_counter() - start)

    def __call__(self, model: Model, seconds: float) -> Latency:
        """Time both models in turns for about `seconds` seconds, or less where `MOST_ROUNDS` take less."""
        seconds = min(seconds, self.MOST_ROUNDS * self._seconds_per_round)
        return measure_latency(self._original, model, self._feed, threads=self._threads, seconds=seconds)
