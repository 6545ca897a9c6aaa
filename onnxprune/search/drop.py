"""The smallest model that keeps the caller's metric: smaller and larger models are made and evaluated in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..axes.costs import change
from ..errors import TargetError
from ..graph.model import Model
from ..planfile import Plan
from ..trade import Trade
from .sizes import Sizes, Trial, Trials

MOST_EVALUATIONS = 10
RESOLUTION = 0.01

Evaluate = Callable[[Model], float]


def keep_metric(sizes: Sizes, max_drop: float, evaluate: Evaluate) -> Plan:
    """Give the smallest plan found whose metric is at least the original's less `max_drop`, with its curve in `trade`.

    `evaluate` gives the metric of a model, higher = better; it is called `MOST_EVALUATIONS` times at most, once for
    the original. The interval of sizes is halved until it is `RESOLUTION` wide: where the metric does not fall with
    the size, a smaller model than the one found may hold as well.

    Raises `TargetError` when nothing can go.
    """
    sizes.say("evaluating the original")
    original = evaluate(sizes.ranking.analysis.model)
    bound = original - max_drop
    trials = Trials(sizes, evaluate, lambda value: (value, value >= bound))
    best: Trial | None = None
    low, high = sizes.least, 1.0
    while high - low > RESOLUTION and len(trials.all) < MOST_EVALUATIONS - 1:
        middle = (low + high) / 2
        sizes.say(f"evaluating a model of {middle:.0%} of the {sizes.by}")
        trial = trials.at(middle)
        if trial.point.holds:
            best, high = trial, min(middle, trial.point.fraction)
        else:
            low = middle
    if best is None:
        raise TargetError(_nothing_holds(trials, original, max_drop))
    figures = change(original, best.figures)
    trade = Trade(sizes.by, "metric", original, bound, trials.points, best.point.fraction, figures)
    return replace(best.plan, trade=trade)


def _nothing_holds(trials: Trials, original: float, max_drop: float) -> str:
    sizes = trials.sizes
    label = sizes.ranking.analysis.model.label
    if not trials.points:
        return f"{label}: less than {100 * RESOLUTION:.0f} % of the {sizes.by} can go. Try a higher --max-ratio"
    best = trials.points[-1]
    return (
        f"{label}: nothing can go while the metric stays within {max_drop:g} of {original:.6g}; "
        f"at {100 * best.fraction:.3g} % of the {sizes.by} it is {best.value:.6g}. "
        "Try a larger --max-drop, --data to repair what stays, or another --criterion"
    )
