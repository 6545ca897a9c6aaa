"""Scores of units by data: what every product that reads a unit loses, and how much of that reaches the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from ..axes.analysis import Analysis
from ..axes.groups import Group
from ..calibration.probe import Probe
from ..calibration.statistics import Statistics
from ..calibration.sums import Sums
from ..criteria.data import Consumer, DataCriterion, GradientCriterion
from ..criteria.registry import Rows, criteria
from ..data import Data, Feed
from ..select.choose import Options
from ..select.target import METRICS
from .curve import CHECKPOINTS, Reads, score_group, score_unseen
from .masked import hidden_from_masks
from .moments import Sampler, feed_shapes, rows_wanted, view_of
from .outputs import Outputs
from .products import Product, find_products
from .split import split
from .walk import Walk

Scored = dict[str, tuple[Rows, dict[str, Any]]]
MEMORY_BYTES = 512 << 20
MOST_FEEDS = 192
MOST_FEATURES = 1600
MOST_TO_COMPARE = 24
FEWEST_TO_COMPARE = 2
MACS_TO_COMPARE = 200e9


def with_data(
    analysis: Analysis,
    options: Options,
    data: Data,
    *,
    threads: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Options:
    """Have the options score units by `data`, where their criterion looks at data.

    Raises `UnknownNameError` for an unknown criterion.
    """
    chosen = criteria[options.criterion] if options.criterion != "random" else None
    if not isinstance(chosen, DataCriterion | GradientCriterion):
        return options
    is_global = (options.scope or ("local" if options.ratio is not None else "global")) == "global"
    counted = [m for m in options.target if m in METRICS] or [m for m in [options.minimize] if m in METRICS]

    def scorer(groups: Sequence[Group]) -> Scored:
        if say is not None:
            say("running the samples")
        metrics = (counted or ["macs"]) if is_global else ()
        if isinstance(chosen, GradientCriterion):
            from .gradients import score_by_gradients

            return score_by_gradients(
                analysis, groups, chosen, data, metrics=metrics, seed=options.seed, threads=threads
            )
        return score_groups(analysis, groups, chosen, data, metrics=metrics, seed=options.seed, threads=threads)

    return replace(options, scorer=scorer)


def score_groups(
    analysis: Analysis,
    groups: Sequence[Group],
    criterion: DataCriterion,
    data: Data,
    *,
    metrics: Sequence[str] = (),
    seed: int = 0,
    threads: int | None = None,
) -> Scored:
    """Score the units of every group: (size,) numbers, higher is worth keeping, and what was used.

    With `metrics`, some of "params", "macs" and "bytes", scores compare between groups: they are the error at the
    model's outputs that a unit adds, over the part of these costs that it saves. Otherwise each group is on its own.
    Raises `DataError` for data that does not fit the model.
    """
    probe = Probe(analysis.model)
    feeds, others = split(list(islice(iter(data), MOST_FEEDS)))
    products = [p.by_channel() if p.shape[2] > MOST_FEATURES else p for p in find_products(analysis)[0]]
    readers = {g.id: [p for p in products if _reads(analysis, p, g)] for g in groups}
    runs = analysis.cost.macs * len(groups) * len(CHECKPOINTS)
    n_compared = min(MOST_TO_COMPARE, max(FEWEST_TO_COMPARE, int(MACS_TO_COMPARE / max(1, runs))))
    outputs = Outputs(probe, others[:n_compared], threads) if metrics else None
    found: Scored = {}
    for together in _batches(groups, readers, "gram" in criterion.needs):
        asked = list(dict.fromkeys(p for g in together for p in readers[g.id]))
        statistics = _statistics(probe, asked, feeds, criterion.needs, threads)
        for group in together:
            if readers[group.id] and not any(p in statistics and statistics[p].n_rows for p in readers[group.id]):
                found[group.id] = score_unseen(analysis, group, criterion, seed)
                continue
            reads = list(_consumers(analysis, group, readers[group.id], statistics))
            hidden = hidden_from_masks(analysis, analysis.alive({group.id: [0]}))
            seen = outputs if hidden is None else None
            found[group.id] = score_group(analysis, group, criterion, reads, seed=seed, outputs=seen)
    savings = {g.id: saved(analysis, g, metrics) if metrics else 1.0 for g in groups}
    return {g.id: (found[g.id][0] / savings[g.id], found[g.id][1]) for g in groups}


def saved(analysis: Analysis, group: Group, metrics: Sequence[str]) -> float:
    """Give what one unit of a group saves, as a part of what the model costs, averaged over half of its units."""
    removed = list(range(0, group.size, 2))
    less = analysis.costs(analysis.alive({group.id: removed}))
    parts = [1.0 - float(getattr(less, m)) / max(1, getattr(analysis.cost, m)) for m in metrics]
    return float(max(sum(parts) / len(parts) / len(removed), 1e-12))


def _statistics(
    probe: Probe, products: Sequence[Product], feeds: list[Feed], needs: Sequence[str], threads: int | None
) -> dict[Product, Statistics]:
    """Gather the moments of the original, for every product whose data can be had."""
    shapes = feed_shapes(probe, feeds)
    views = {p: v for p in products if not isinstance(v := view_of(p, probe, shapes), str)}
    samplers = {p: Sampler(v, rows_wanted(p), len(feeds)) for p, v in views.items()}
    sums = {p: Sums(frozenset({*needs, "square"})) for p in views}
    walk = Walk(probe, feeds, {}, threads)
    for values in walk.step(list(dict.fromkeys(n for v in views.values() for n in v.names))):
        for p in views:
            for (rows,) in samplers[p].rows(values):
                sums[p].add(rows)
    return {p: s.statistics(len(feeds), s.needs) for p, s in sums.items()}


def _reads(analysis: Analysis, product: Product, group: Group) -> bool:
    return any(g.id == group.id for axis in set(product.inputs) for g in analysis.groups_on(axis.id))


def _batches(groups: Sequence[Group], readers: Mapping[str, list[Product]], squares: bool) -> Iterator[list[Group]]:
    """Divide the groups so that the Gram matrices held at a time fit into memory."""
    batch: list[Group] = []
    held: dict[Product, int] = {}
    for group in groups:
        new = {p: 8 * p.shape[0] * p.shape[2] ** (2 if squares else 1) for p in readers[group.id]}
        if batch and sum({**held, **new}.values()) > MEMORY_BYTES:
            yield batch
            batch, held = [], {}
        batch.append(group)
        held |= new
    if batch:
        yield batch


def _consumers(
    analysis: Analysis, group: Group, products: Sequence[Product], statistics: Mapping[Product, Statistics]
) -> Iterator[Reads]:
    """List the matrices that read units of a group, less those whose outputs go with the units they read."""
    for product in products:
        given = statistics.get(product)
        if given is None or given.missing:
            continue
        weight = product.matrices(analysis.model.array(product.weight))
        unit = product.units(analysis, group)
        rows = product.output_units(analysis, group)
        for k in range(product.shape[0]):
            if (unit[k] < 0).all() or (len(np.unique(unit[k])) == 1 and (rows[k] == unit[k][0]).all()):
                continue
            moments = {
                need: value[k]
                for need in ("mean", "square", "variance", "zeros", "gram")
                if (value := getattr(given, need)) is not None
            }
            yield Reads(product, k, Consumer(weight[k], unit[k], group.size, n_rows=given.n_rows, **moments))
