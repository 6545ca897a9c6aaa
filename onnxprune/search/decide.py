"""Decide which units go, by counting where that tells, by searching where only a measurement does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..axes.analysis import Analysis
from ..errors import OptionError
from ..graph.session import open_session
from ..planfile import Plan
from ..select.choose import Options, choose, rank
from ..verification.metric import load_metric
from .clock import Clock
from .drop import keep_metric
from .latency import TimeIt, meet_latency
from .sizes import Build, Say, Sizes, say_nothing


def decide(
    analysis: Analysis,
    options: Options,
    weights: set[str] | None = None,
    *,
    build: Build,
    metric: str | Callable[..., Any] | None = None,
    clock: Callable[[], TimeIt] | None = None,
    threads: int | None = None,
    say: Say = say_nothing,
) -> Plan:
    """Decide which units go, as `choose` does, and for a latency or a largest drop by making models with `build`.

    `metric` takes an InferenceSession or is `FILE.py:FUNCTION`. `clock` gives what times the models, on `threads`
    threads: by default a `Clock` on a random sample at the sizes of the analysis.
    """
    options.check()
    if (options.max_drop is None) != (metric is None):
        raise OptionError("max_drop and metric go together: how much may be lost of what (--max-drop X --metric F)")
    if metric is not None:
        figure = load_metric(metric)
        sizes = Sizes(rank(analysis, options, weights), options.minimize, build, {}, options.scope, say)
        return keep_metric(sizes, options.max_drop or 0.0, lambda model: figure(open_session(model, threads=threads)))
    if "latency" not in options.target:
        return choose(analysis, options, weights)
    others = {name: fraction for name, fraction in options.target.items() if name != "latency"}
    by = "macs" if analysis.cost.macs else "params"
    sizes = Sizes(rank(analysis, options, weights), by, build, others, options.scope, say)
    say("timing the original")
    timed = clock() if clock is not None else _clock(analysis, threads, options.seed)
    return meet_latency(sizes, options.target["latency"], timed)


def _clock(analysis: Analysis, threads: int | None, seed: int) -> Clock:
    shapes = dict(analysis.collection.shapes.input_shapes) or None
    return Clock(analysis.model, input_shapes=shapes, threads=threads, seed=seed)
