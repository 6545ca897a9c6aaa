"""Timing of two models side by side: paired, interleaved, in alternating order.

A machine's speed drifts by more than what pruning gains; timing both models within each round cancels that.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from ..errors import OptionError
from ..graph.model import Model
from ..graph.session import open_session
from .tensors import Array

WARMUP = 3
MIN_ROUNDS = 5
SECONDS = 5.0


@dataclass(frozen=True)
class Latency:
    """Milliseconds per run: medians and 90th percentiles, and the median over rounds of after / before."""

    before: float
    after: float
    ratio: float
    before_p90: float
    after_p90: float
    rounds: int
    threads: int | None

    def to_json(self) -> dict[str, Any]:
        """Give the figures under the names of `verify --json`."""
        return {
            "before": self.before,
            "after": self.after,
            "ratio": self.ratio,
            "before_p90": self.before_p90,
            "after_p90": self.after_p90,
            "rounds": self.rounds,
            "threads": self.threads,
        }


def measure_latency(
    before: Model,
    after: Model,
    feed: Mapping[str, Array],
    *,
    threads: int | None = None,
    rounds: int | None = None,
    seconds: float = SECONDS,
) -> Latency:
    """Time both models on one feed, for `rounds` rounds or about `seconds` seconds (at least 5 rounds).

    Idle threads do not spin, or those of one model would slow the other down.
    """
    if rounds is not None and rounds < 1:
        raise OptionError(f"rounds must be at least 1, not {rounds}")
    sessions = [open_session(model, threads=threads, spinning=False) for model in (before, after)]
    inputs = dict(feed)
    for _ in range(WARMUP):
        for session in sessions:
            _time_ms(session, inputs)
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while _another(len(times), rounds, end):
        if len(times) % 2:
            second = _time_ms(sessions[1], inputs)
            times.append((_time_ms(sessions[0], inputs), second))
        else:
            first = _time_ms(sessions[0], inputs)
            times.append((first, _time_ms(sessions[1], inputs)))
    table = np.asarray(times)
    p50, p90 = np.percentile(table, 50, axis=0), np.percentile(table, 90, axis=0)
    ratio = float(np.median(table[:, 1] / table[:, 0]))
    return Latency(float(p50[0]), float(p50[1]), ratio, float(p90[0]), float(p90[1]), len(times), threads)


def _another(done: int, rounds: int | None, end: float) -> bool:
    if rounds is not None:
        return done < rounds
    return done < MIN_ROUNDS or time.perf_counter() < end


def _time_ms(session: ort.InferenceSession, inputs: dict[str, Array]) -> float:
    start = time.perf_counter()
    session.run(None, inputs)
    return (time.perf_counter() - start) * 1e3
