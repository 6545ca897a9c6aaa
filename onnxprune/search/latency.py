"""Widths that make a model as fast as asked: smaller models are made and timed beside the original until one is.

Multiply-accumulates say what runs faster, only the clock says by how much. The search follows the curve of time
against size with straight lines, from the size that would do if time were proportional to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count

from ..errors import TargetError
from ..graph.model import Model
from ..planfile import Plan
from ..trade import Point, Trade
from ..verification.latency import Latency
from .sizes import Sizes, Trial, Trials

MOST_MODELS = 8
SECONDS = 3.0
SECONDS_TO_CONFIRM = 5.0
# Where to aim below the bound, when to be content, and what keeps a guess away from the ends of its interval.
AIM = 0.97
CLOSE = 0.95
NARROW = 0.02
EDGE = 0.15
LEAST_SLOPE = 0.3

TimeIt = Callable[[Model, float], Latency]


def meet_latency(sizes: Sizes, bound: float, clock: TimeIt) -> Plan:
    """Give the largest plan found whose model takes at most `bound` of the original's time, with its curve in `trade`.

    `clock(model, seconds)` times a model beside the original. At most `MOST_MODELS` models are timed; what seems fast
    enough is timed twice more, for longer and in sessions of their own, and the slower figure decides. The same timings
    give the same plan.

    Raises `TargetError` with the least ratio measured when not even the smallest model is fast enough.
    """
    numbers = count(1)

    def timed(seconds: float, times: int = 1) -> Callable[[Model], Latency]:
        def measure(model: Model) -> Latency:
            found = []
            for _ in range(times):
                sizes.say(f"timing smaller models, {next(numbers)}")
                found.append(clock(model, seconds))
            return max(found, key=lambda latency: latency.ratio)

        return measure

    trials = Trials(sizes, timed(SECONDS), lambda found: (found.ratio, found.ratio <= bound))
    slow = Point(1.0, 1.0, holds=False)
    while (fast := _narrow(trials, slow, bound)) is not None:
        confirmed = trials.again(fast, timed(SECONDS_TO_CONFIRM, times=2))
        if confirmed.point.holds:
            figures = confirmed.figures.to_json()
            trade = Trade(sizes.by, "latency", 1.0, bound, trials.points, confirmed.point.fraction, figures)
            return replace(confirmed.plan, trade=trade)
        slow = confirmed.point
    raise TargetError(_too_slow(trials, bound))


def _narrow(trials: Trials, slow: Point, bound: float) -> Trial | None:
    """Find the largest model below `slow` that is fast enough, None when not even the least is."""
    least = trials.sizes.least
    fast = _largest_fast(trials, slow)
    while not _content(fast, slow, bound) and len(trials.all) < MOST_MODELS:
        trial = trials.at(_guess(fast, slow, bound, least))
        if not trial.point.holds:
            if trial.point.fraction >= slow.fraction:
                return None
            slow = trial.point
        fast = _largest_fast(trials, slow)
    if fast is None:
        last = trials.at(least)
        return last if last.point.holds else None
    return fast


def _largest_fast(trials: Trials, slow: Point) -> Trial | None:
    fast = [t for t in trials.all if t.point.holds and t.point.fraction < slow.fraction]
    return max(fast, key=lambda t: t.point.fraction, default=None)


def _content(fast: Trial | None, slow: Point, bound: float) -> bool:
    """Say whether a larger model is not worth a search."""
    if fast is None:
        return False
    return fast.point.value >= CLOSE * bound or slow.fraction - max(fast.allowed, fast.point.fraction) < NARROW


def _guess(fast: Trial | None, slow: Point, bound: float, least: float) -> float:
    """Guess the fraction that takes `AIM` of the bound, on a straight line through what is known."""
    aim = AIM * bound
    if fast is not None:
        point = fast.point
        share = (aim - point.value) / max(slow.value - point.value, 1e-9)
        guess = point.fraction + share * (slow.fraction - point.fraction)
        # Below what is allowed already there is nothing new.
        low = max(fast.allowed, point.fraction)
        gap = slow.fraction - low
        return min(max(guess, low + EDGE * gap), slow.fraction - EDGE * gap)
    if slow.fraction >= 1:
        return max(aim, least)
    slope = max((1 - slow.value) / (1 - slow.fraction), LEAST_SLOPE)
    return max(min(slow.fraction - (slow.value - aim) / slope, slow.fraction - NARROW), least)


def _too_slow(trials: Trials, bound: float) -> str:
    best = min(trials.points, key=lambda point: point.value)
    sizes = trials.sizes
    return (
        f"{sizes.ranking.analysis.model.label}: cannot run in at most {100 * bound:.4g} % of the time; "
        f"{100 * best.value:.3g} % is the least measured, at {100 * best.fraction:.3g} % of the {sizes.by}. "
        f"Try a higher --max-ratio, --allow-inexact or --threads, or: onnxprune inspect MODEL"
    )
